"""Responses of the API. Times are ISO 8601 in UTC; ids are WorkOS's, and opaque."""

from datetime import datetime
from typing import Annotated, Generic, Literal, TypeVar

from pydantic import BaseModel, Field

from models.types import JsonObject

Item = TypeVar("Item", bound=BaseModel)


class Error(BaseModel):
    """An error message for developers."""

    error: str


class StaleAnswer(BaseModel):
    """Why the mirror cannot answer within the bound, the time up to which it is complete, and when to retry."""

    error: str
    complete_to: datetime | None
    retry_after: int


class Access(BaseModel):
    """A person's role in a workspace, null for no access; and the time up to which the mirror is complete."""

    role: Literal["admin", "member"] | None
    complete_to: datetime | None


class Refreshed(BaseModel):
    """The state in the mirror after the read: a person's `access`, or an `object`. The other one is null.

    An object has all columns of its kind, and `state`: `active` or `deleted`.
    """

    access: Access | None = None
    object: JsonObject | None = None


class PendingRefresh(BaseModel):
    """It has not been read yet. `error` says why the last attempt failed; null if none did."""

    error: str | None


class Mirror(BaseModel):
    """How up to date the mirror is."""

    state: str
    complete_to: datetime | None
    last_resync: datetime | None
    age_seconds: float | None
    smallest_bound_seconds: float
    error: str | None


class Condition(BaseModel):
    """Something that is wrong now, and what to do about it."""

    name: str
    severity: Literal["warning", "problem"]
    sentence: str
    remedy: str
    runbook: str
    page: str
    doubts_mirror: bool
    because_of: str | None


class Status(BaseModel):
    """Whether the mirror is trustworthy, the reasons if it is not, and all conditions that hold, the worst first."""

    trusted: bool
    severity: Literal["ok", "warning", "problem"]
    conditions: list[Condition]
    reasons: list[str]
    mirror: Mirror
    tail_interval_seconds: float
    late_events: int
    uncertain_events: int
    pending: int
    oldest_pending_seconds: float
    failed: int
    gaps: int
    late: int
    auto_join_conflicts: int
    missing_joins: int | None
    workspaces_without_admin: int | None
    hooks: list[str]
    problems: list[str]
    warnings: list[str]
    unmapped_roles: list[str]
    runs: list[str]


class Workspace(BaseModel):
    """A workspace: a WorkOS organization."""

    organization_id: str
    name: str | None
    external_id: str | None
    state: Literal["active", "deleted"]
    created_at: datetime | None
    updated_at: datetime | None
    stripe_customer_id: str | None
    metadata: JsonObject | None


class Member(BaseModel):
    """A person who has access to a workspace now."""

    organization_id: str
    workspace_name: str | None
    user_id: str
    email: str | None
    role: str
    workos_role: str | None
    status: str
    membership_id: str
    since: datetime | None
    workspace_external_id: str | None
    user_external_id: str | None
    user_metadata: JsonObject | None
    custom_attributes: JsonObject | None


class ListedMember(Member):
    """A person who has access to a workspace; with `at`, also the last change of this access until then.

    These fields are null without `at`, and if the change has been pruned. The last three are only set with `as_workos`.
    """

    changed_at: datetime | None = None
    cause: str | None = None
    cause_id: str | None = None
    actor_id: str | None = None
    actor_name: str | None = None
    actor_source: str | None = None
    approximate: Annotated[
        bool | None, Field(description="It is not known whether the person had this access at the time, or another.")
    ] = None
    changed_after: Annotated[
        datetime | None, Field(description="WorkOS made the change between this time and `changed_before`.")
    ] = None
    changed_before: datetime | None = None


class Invitation(BaseModel):
    """An invitation to a workspace. A pending one is expired from `expires_at` on. `email` is null once erased."""

    organization_id: str
    invitation_id: str
    email: str | None
    email_normalized: str | None
    status: str | None
    workos_role: str | None
    inviter_user_id: str | None
    accepted_user_id: str | None
    created_at: datetime | None
    expires_at: datetime | None
    accepted_at: datetime | None
    revoked_at: datetime | None


class Domain(BaseModel):
    """A domain of a workspace: whether people with an e-mail address on it join automatically, and why."""

    id: str
    domain: str | None
    organization_id: str | None
    verification: str | None
    state: Literal["pending", "verified", "failed", "conflicted", "revoked"]
    auto_join: bool
    why: str


class SignInMethod(BaseModel):
    """An active single sign-on connection of a workspace, and when its first SAML certificate expires, if known."""

    organization_id: str
    connection_id: str
    connection_type: str | None
    name: str | None
    since: datetime | None
    certificate_expires_at: datetime | None


class Join(BaseModel):
    """The workspace to join, and the role in it."""

    organization_id: str
    default_role: str


class JoinRule(Join):
    """A domain whose people join a workspace automatically."""

    domain: str
    since: datetime | None


class AutoJoin(BaseModel):
    """The workspace that a person with this verified address joins; null if none."""

    auto_join: Join | None


class Event(BaseModel):
    """An event in the inbox."""

    id: str
    type: str
    status: str
    outcome: str | None
    object_id: str | None
    organization_id: str | None
    received_at: datetime
    deliveries: int
    attempts: int
    error: str | None


class WholeEvent(Event):
    """An event with its payload and the changes it caused."""

    source: str
    occurred_at: datetime | None
    processed_at: datetime | None
    decided_by: str | None
    fingerprint: str | None
    traceback: str | None
    replays: int
    replay_id: str | None
    dismissed_by: str | None
    dismissed_why: str | None
    body: object
    changes: list["Change"]


class Change(BaseModel):
    """A change to the mirror, its cause, and who made it at WorkOS, if known."""

    id: int
    at: datetime
    kind: str
    object_id: str
    organization_id: str | None
    before: JsonObject | None
    after: JsonObject
    cause: str
    cause_id: str
    actor_id: str | None
    actor_name: str | None
    actor_source: str | None
    previous_attributes: JsonObject | None
    workos_at: datetime | None
    workos_after: datetime | None


class Audit(BaseModel):
    """An action of an operator or a setting."""

    id: int
    at: datetime
    who: str
    via: str
    action: str
    kind: str | None
    object_id: str | None
    organization_id: str | None
    reason: str | None
    details: JsonObject | None


class Run(BaseModel):
    """A replay or a resync."""

    id: str
    status: str
    requested_by: str
    reason: str | None
    created_at: datetime
    finished_at: datetime | None
    error: str | None


class Replay(Run):
    """A replay: the number of events selected, requeued, and skipped because their payload has been deleted."""

    selection: JsonObject | None
    total: int | None
    done: int
    skipped: int


class WholeReplay(Replay):
    """A replay, and its events by current status."""

    results: dict[str, int]


class Resync(Run):
    """A resync."""

    organization_id: str | None
    dry_run: bool
    approves: str | None
    phase: str
    calls: int


class WholeResync(Resync):
    """A resync, the differences it found, and the number of deletions it withholds.

    For a resync that is not done, or has skipped organizations whose listings failed, `findings` are those so far (null
    instead of none), and `compared` has the number of organizations that it has compared, and of all (null: not known).
    """

    findings: dict[str, int] | None
    compared: tuple[int, int | None] | None
    withheld: int


class Page(BaseModel, Generic[Item]):
    """A page. Pass `next` as `after` to get the next page; null on the last page."""

    next: str | None
    items: list[Item]

    @classmethod
    def model_parametrized_name(cls, params: tuple[object, ...]) -> str:
        """Return the name of a page in the OpenAPI document, such as `Workspaces`."""
        return f"{getattr(params[0], '__name__', 'Item')}s"


class Changes(BaseModel):
    """Changes in commit order. Pass `next` as `after` to continue."""

    items: list[Change]
    next: int


class Snapshot(BaseModel):
    """The whole state at one moment. Continue with the changes after `changes_after`."""

    changes_after: int
    workspaces: list[Workspace]
    workspace_members: list[Member]
    workspace_invitations: list[Invitation]
    auto_join_domains: list[JoinRule]
    sign_in_methods: list[SignInMethod]
