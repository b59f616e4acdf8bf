"""Auto-join: domains, workspace settings, and people who join."""

from datetime import datetime
from enum import StrEnum

from sqlalchemy import Index
from sqlalchemy.orm import Mapped, mapped_column

from models.tables.base import Base, index_where
from models.tables.mirror import Cause
from models.types import EnumText, db_now

JOIN = "join"
"""The kind, in `changes`, of what an operator decided about a person and auto-join into a workspace.

Its object is the person, and its rows are a chain for each person and workspace: `state` (`blocked` or `unblocked`),
`reasons` (what keeps them out, or kept them out until now) and `why`.
"""


WORKSPACE_SETTINGS = "workspace_settings"
"""The kind, in `changes`, of a workspace's own settings; its object is the workspace."""


class AutoJoinState(StrEnum):
    """The auto-join state of a domain."""

    PENDING = "pending"
    VERIFIED = "verified"
    FAILED = "failed"
    CONFLICTED = "conflicted"
    """Verified, and by another live workspace too: nobody joins either."""
    REVOKED = "revoked"
    """The domain or its workspace is deleted."""


class AutoJoin(Base):
    """A domain's auto-join state, as last noted in `changes`: the view `auto_join_domains` decides by itself."""

    __tablename__ = "auto_joins"

    domain_id: Mapped[str] = mapped_column(primary_key=True)
    domain: Mapped[str | None]
    """Normalized."""
    organization_id: Mapped[str | None]
    state: Mapped[AutoJoinState] = mapped_column(EnumText(AutoJoinState))
    reason: Mapped[str | None]
    since: Mapped[datetime] = mapped_column(server_default=db_now())

    __table_args__ = (
        Index("ix_auto_joins_state", "state"),
        index_where("domain IS NULL", "ix_auto_joins_invalid", "state"),
    )


class WorkspaceSettings(Base):
    """What operators decided about a workspace, who and why."""

    __tablename__ = "workspace_settings"

    organization_id: Mapped[str] = mapped_column(primary_key=True)
    auto_join: Mapped[bool | None]
    """False: nobody joins by domain."""
    default_role: Mapped[str | None]
    """The local role of those who join by domain."""
    who: Mapped[str]
    why: Mapped[str]
    at: Mapped[datetime] = mapped_column(server_default=db_now())


class JoinState(StrEnum):
    """Where a join stands."""

    PENDING = "pending"
    UNDO = "undo"
    """The create activated what was inactive: it is still to be deactivated again."""
    JOINED = "joined"
    DROPPED = "dropped"
    """It was no longer right when its turn came; a new cause makes it pending again."""
    FAILED = "failed"
    """WorkOS refuses it."""
    BLOCKED = "blocked"
    """Removed, deactivated or invited: until an operator unblocks the person."""
    UNDONE = "undone"
    """As blocked; the create had activated what was inactive, and it was deactivated again."""


class Join(Base):
    """Someone to be made, or made, a member of the workspace that holds the domain of their verified e-mail address."""

    __tablename__ = "joins"

    organization_id: Mapped[str] = mapped_column(primary_key=True)
    user_id: Mapped[str] = mapped_column(primary_key=True, index=True)
    domain: Mapped[str | None]
    state: Mapped[JoinState] = mapped_column(EnumText(JoinState), server_default=JoinState.PENDING)
    reason: Mapped[str | None]
    cause: Mapped[Cause] = mapped_column(EnumText(Cause))
    cause_id: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=db_now())
    due_at: Mapped[datetime] = mapped_column(server_default=db_now())
    settled_at: Mapped[datetime | None]
    complete_from: Mapped[datetime | None]
    """A time of WorkOS's clock after everything that was done about this join: nothing is created before all events
    up to then are applied, for one of them may be a removal."""
    claim: Mapped[int] = mapped_column(server_default="0")
    """Grows with each worker that takes it up; one with an older number may write nothing."""
    attempts: Mapped[int] = mapped_column(server_default="0")
    attempted_at: Mapped[datetime | None]
    """When WorkOS last showed no membership, before it was asked to create one; by its clock."""
    membership_id: Mapped[str | None]
    error: Mapped[str | None]

    __table_args__ = (
        Index("ix_joins_state", "state"),
        index_where("state IN ('pending', 'undo')", "ix_joins_open", "due_at"),
    )


class UnblockedMembership(Base):
    """A membership that no longer keeps its person from joining by domain, because an operator said so."""

    __tablename__ = "unblocked_memberships"

    membership_id: Mapped[str] = mapped_column(primary_key=True)
    who: Mapped[str]
    why: Mapped[str]
    at: Mapped[datetime] = mapped_column(server_default=db_now())


class JoinSearch(Base):
    """A domain that began to auto-join: the users on it who are to join are still to be looked for."""

    __tablename__ = "join_searches"

    organization_id: Mapped[str] = mapped_column(primary_key=True)
    domain: Mapped[str] = mapped_column(primary_key=True)
    created_after: Mapped[datetime | None]
    """Only those who signed up after this; None: all."""
    after: Mapped[str] = mapped_column(server_default="")
    """The last user id looked at."""
    cause: Mapped[Cause] = mapped_column(EnumText(Cause))
    cause_id: Mapped[str]
