"""Values of columns that commands take as options. Imports nothing, so that `--help` does not import SQLAlchemy."""

from enum import StrEnum


class Via(StrEnum):
    """How an action was requested. The API requests none."""

    CLI = "cli"
    PAGE = "page"
    SETTINGS = "settings"
    CLOCK = "clock"


class Action(StrEnum):
    """An action in the audit."""

    SIGN_IN = "sign_in"
    SIGN_OUT = "sign_out"
    RESYNC = "resync"
    APPROVE_DELETIONS = "approve_deletions"
    CATCH_UP = "catch_up"
    REPLAY = "replay"
    CANCEL_REPLAY = "cancel_replay"
    DISMISS_EVENT = "dismiss_event"
    RETRY_DELIVERIES = "retry_deliveries"
    DISMISS_DELIVERIES = "dismiss_deliveries"
    SET_AUTO_JOIN = "set_auto_join"
    """A workspace's switch or role."""
    BLOCK = "block"
    UNBLOCK = "unblock"
    CHANGE_AUTO_JOIN_MODE = "change_auto_join_mode"
    """`AUTO_JOIN` or `AUTO_JOIN_EXISTING`."""
    CHANGE_ROLE_MAP = "change_role_map"
    APPROVE_ROLE_MAP = "approve_role_map"
    CHANGE_REVOKE_SESSIONS = "change_revoke_sessions"
    REVOKE_SESSIONS = "revoke_sessions"
    """Sessions of a person who lost access were revoked."""
    FORGET = "forget"
    REVIEW = "review"
    REGISTER = "register"
    DELETE_ENDPOINT = "delete_endpoint"
    MIGRATE = "migrate"


class EventStatus(StrEnum):
    """The state of an event in the inbox."""

    PENDING = "pending"
    DONE = "done"
    FAILED = "failed"
    DISMISSED = "dismissed"
    """Failed, and an operator decided not to apply it."""


class JoinState(StrEnum):
    """The state of a join."""

    PENDING = "pending"
    UNDO = "undo"
    """Creating the membership reactivated an inactive one, which must be deactivated again."""
    JOINED = "joined"
    DROPPED = "dropped"
    """The person no longer qualified when the join was due. A new cause makes it pending again."""
    FAILED = "failed"
    """WorkOS refused the membership, or `ROLE_MAP` has no WorkOS role for it."""
    BLOCKED = "blocked"
    """The person was removed, deactivated, invited, or blocked by an operator, who can unblock them."""
    UNDONE = "undone"
    """As `BLOCKED`, after the reactivated membership was deactivated again."""


class RunStatus(StrEnum):
    """The state of a run."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


QUEUED = "queued"
"""The status in reports of a running run that no process works on."""


class Task(StrEnum):
    """The task of a run."""

    RESYNC = "resync"
    CATCH_UP = "catch_up"
    RETENTION = "retention"
    REPLAY = "replay"
