"""What the API takes and answers. Times are ISO 8601 in UTC, ids are WorkOS's own, opaque."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_ITEMS = 500
MAX_WAIT = 25
MAX_CHANGE_ID = 2**63 - 1

Id = Annotated[str, Field(min_length=1, max_length=255, pattern="^[ -~]+$")]
"""A WorkOS id: printable ASCII."""
Text = Annotated[str, Field(min_length=1, max_length=320, pattern=r"^[^\x00-\x1f\x7f]+$")]
Json = dict[str, Any]


class Query(BaseModel):
    """Query parameters: unknown ones are refused, for a misspelled filter must not return everything."""

    model_config = ConfigDict(extra="forbid")


class Paging(Query):
    """A page of a listing."""

    after: Annotated[Id | None, Field(description="`next` of the page before.")] = None
    limit: Annotated[int, Field(ge=1, le=MAX_ITEMS)] = 100


class WorkspaceQuery(Paging):
    """Which workspaces."""

    state: Literal["active", "deleted"] | None = None


class MemberQuery(Paging):
    """Which members: of a workspace, or the workspaces of a person."""

    organization_id: Id | None = None
    user_id: Id | None = None
    email: Text | None = None


class DomainQuery(Paging):
    """Which domains."""

    organization_id: Id | None = None


class SignInQuery(Paging):
    """Whose sign-in methods."""

    organization_id: Id | None = None


class AutoJoinQuery(Query):
    """Whose auto-join. The caller vouches that the address is verified."""

    email: Text


class EventQuery(Paging):
    """Which events, newest first."""

    status: Literal["pending", "done", "failed", "dismissed"] | None = None
    type: Id | None = None
    organization_id: Id | None = None


class ChangesQuery(Query):
    """Where to go on, and how long to wait for something new."""

    after: Annotated[int, Field(ge=0, le=MAX_CHANGE_ID, description="The highest id seen; 0 at the beginning.")] = 0
    limit: Annotated[int, Field(ge=1, le=MAX_ITEMS)] = 100
    wait: Annotated[int, Field(ge=0, le=MAX_WAIT, description="Seconds to wait for a change.")] = 0


class Error(BaseModel):
    """What was wrong, and the remedy."""

    error: str


class Mirror(BaseModel):
    """As of when the mirror is right."""

    state: str
    complete_to: datetime | None
    last_resync: datetime | None


class Status(BaseModel):
    """Whether the mirror can be trusted, and if not why not."""

    trusted: bool
    reasons: list[str]
    mirror: Mirror
    pending: int
    oldest_pending_seconds: float
    failed: int
    gaps: int
    late: int
    auto_join_conflicts: int
    missing_joins: int
    workspaces_without_admin: int
    hooks: list[str]
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


class Domain(BaseModel):
    """A domain of a workspace: whether people on it join by themselves, and why or why not."""

    id: str
    domain: str | None
    organization_id: str | None
    verification: str | None
    state: Literal["pending", "verified", "failed", "conflicted", "revoked"]
    auto_join: bool
    why: str


class SignInMethod(BaseModel):
    """A way to sign in to a workspace with single sign-on that works now."""

    organization_id: str
    connection_id: str
    connection_type: str | None
    name: str | None
    since: datetime | None


class JoinRule(BaseModel):
    """A domain on which people join a workspace by themselves."""

    domain: str
    organization_id: str
    default_role: str
    since: datetime | None


class Join(BaseModel):
    """The workspace that somebody joins."""

    organization_id: str
    default_role: str


class AutoJoin(BaseModel):
    """The workspace that a person with this verified address joins; null: none."""

    auto_join: Join | None


class Event(BaseModel):
    """An inbox row."""

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
    """An inbox row with its payload and what it changed."""

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
    body: Any
    changes: list["Change"]


class Change(BaseModel):
    """A change of the mirror, and its cause."""

    id: int
    at: datetime
    kind: str
    object_id: str
    organization_id: str | None
    before: Json | None
    after: Json
    cause: str
    cause_id: str


class Run(BaseModel):
    """A replay or a resync."""

    id: str
    status: str
    requested_by: str
    created_at: datetime
    finished_at: datetime | None
    error: str | None


class Replay(Run):
    """A replay: how many events it names, has put back, and had to skip because their payload is gone."""

    selection: Json | None
    reason: str | None
    total: int | None
    done: int
    skipped: int


class WholeReplay(Replay):
    """A replay and what has become of its events by now."""

    results: dict[str, int]


class Resync(Run):
    """A resync."""

    organization_id: str | None
    dry_run: bool
    approves: str | None
    phase: str
    calls: int


class WholeResync(Resync):
    """A resync, what it found and how many deletions it withholds."""

    findings: dict[str, int]
    withheld: int


class Page(BaseModel):
    """A page; `next` is the `after` of the next one, null at the end."""

    next: str | None


class Workspaces(Page):
    """A page of workspaces, by id."""

    items: list[Workspace]


class Members(Page):
    """A page of members, by membership id."""

    items: list[Member]


class Domains(Page):
    """A page of domains, by id."""

    items: list[Domain]


class SignInMethods(Page):
    """A page of sign-in methods, by connection id."""

    items: list[SignInMethod]


class Events(Page):
    """A page of events, newest first."""

    items: list[Event]


class Replays(Page):
    """A page of replays, newest first."""

    items: list[Replay]


class Resyncs(Page):
    """A page of resyncs, newest first."""

    items: list[Resync]


class Changes(BaseModel):
    """Changes in commit order; go on with `next` as `after`."""

    items: list[Change]
    next: int


class Snapshot(BaseModel):
    """The whole state as of one moment; go on with the changes after `changes_after`."""

    changes_after: int
    workspaces: list[Workspace]
    workspace_members: list[Member]
    auto_join_domains: list[JoinRule]
    sign_in_methods: list[SignInMethod]
