"""The tables. Keys are WorkOS's own ids. No foreign keys between mirrored rows: children may come before parents."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import BigInteger, Index, Integer, LargeBinary, MetaData, SmallInteger, Text, false, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from models.types import JsonValue, UtcDateTime, db_now


class Base(DeclarativeBase):
    """All tables of workos-sync."""

    metadata = MetaData(naming_convention={"ix": "ix_%(table_name)s_%(column_0_N_name)s", "pk": "pk_%(table_name)s"})
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy's own way to declare it
        datetime: UtcDateTime(),
        str: Text(),
        bytes: LargeBinary(),
        dict[str, Any]: JsonValue,
        list[str]: JsonValue,
    }


class Kind(StrEnum):
    """What WorkOS object a mirrored row stands for."""

    ORGANIZATION = "organization"
    USER = "user"
    MEMBERSHIP = "membership"
    DOMAIN = "domain"
    ROLE = "role"
    CONNECTION = "connection"


JOIN = "join"
"""The kind, in `changes`, of what an operator decided about a person and auto-join into a workspace.

Its object is the person, and its rows are a chain for each person and workspace: `state` (`blocked` or `unblocked`),
`reasons` (what keeps them out, or kept them out until now) and `why`.
"""
WORKSPACE_SETTINGS = "workspace_settings"
"""The kind, in `changes`, of a workspace's own settings; its object is the workspace."""


class EventStatus(StrEnum):
    """Where an inbox row stands."""

    PENDING = "pending"
    DONE = "done"
    FAILED = "failed"
    DISMISSED = "dismissed"
    """Failed, and an operator said that it need not be applied."""


def _index_where(condition: str, name: str, *columns: str) -> Index:
    """Return an index of the rows that meet a condition: the others are written without it, at no cost."""
    return Index(name, *columns, postgresql_where=text(condition), sqlite_where=text(condition))


class Event(Base):
    """The inbox: one row for every event id, whichever way and however often it came."""

    __tablename__ = "events"

    id: Mapped[str] = mapped_column(primary_key=True)
    type: Mapped[str]
    source: Mapped[str]
    """The way it came first: `webhook` or `events_api`."""
    body: Mapped[bytes | None]
    """The raw bytes as received. None once retention, erasure or the outcome `ignored` blanked them."""
    received_at: Mapped[datetime] = mapped_column(server_default=db_now())
    deliveries: Mapped[int] = mapped_column(server_default="1")
    last_delivered_at: Mapped[datetime] = mapped_column(server_default=db_now())
    webhook_at: Mapped[datetime | None]
    """When a webhook brought it first; long after `api_at`: late, never: a gap."""
    api_at: Mapped[datetime | None] = mapped_column(index=True)
    """When the events API brought it first."""
    status: Mapped[str] = mapped_column(server_default=EventStatus.PENDING)
    due_at: Mapped[datetime] = mapped_column(server_default=db_now())
    """A pending event is not tried before this, by the database's clock."""
    partition_key: Mapped[int] = mapped_column(SmallInteger(), server_default="0")
    """Made from the object's id, so that drains at work at the same time can choose different objects."""
    attempts: Mapped[int] = mapped_column(server_default="0")
    outcome: Mapped[str | None]
    decided_by: Mapped[str | None]
    """For stale and tombstoned: the event id of the version that won."""
    error: Mapped[str | None]
    fingerprint: Mapped[str | None]
    """Of the error: events that failed for the same cause have the same."""
    traceback: Mapped[str | None]
    """Where the error was raised, without values; None where the payload itself was at fault."""
    replays: Mapped[int] = mapped_column(server_default="0")
    replay_id: Mapped[str | None]
    """The run that replayed it last."""
    dismissed_by: Mapped[str | None]
    dismissed_why: Mapped[str | None]
    processed_at: Mapped[datetime | None]
    occurred_at: Mapped[datetime | None]
    """The event's own time; None until the events API has returned it or a drain has read it."""
    kind: Mapped[str | None]
    object_id: Mapped[str | None]
    organization_id: Mapped[str | None]

    __table_args__ = (
        _index_where("status = 'pending'", "ix_events_pending", "due_at", "id"),
        _index_where("status = 'failed'", "ix_events_failed", "received_at"),
        _index_where("status = 'pending'", "ix_events_pending_received_at", "received_at"),
        _index_where("webhook_at IS NULL", "ix_events_gap", "api_at"),
        _index_where("webhook_at > api_at", "ix_events_late", "api_at"),
        Index("ix_events_received_at", "received_at"),
        Index("ix_events_type", "type", "received_at"),
        _index_where("replay_id IS NOT NULL", "ix_events_replay_id", "replay_id"),
        _index_where("object_id IS NOT NULL", "ix_events_object_id", "object_id"),
        _index_where("organization_id IS NOT NULL", "ix_events_organization_id", "organization_id", "received_at"),
    )


class Batch(Base):
    """What a drain set out to apply, committed before it starts and deleted in the transaction that does it.

    A row that outlives its drain names the suspects: they run again in halves, until one stands alone.
    """

    __tablename__ = "batches"

    id: Mapped[str] = mapped_column(primary_key=True)
    event_ids: Mapped[list[str]]
    started_at: Mapped[datetime | None]
    """None: half of an unfinished batch, waiting for a drain."""


class Mirrored:
    """The columns every mirrored object has beside its content."""

    id: Mapped[str] = mapped_column(primary_key=True)
    created_at: Mapped[datetime | None]
    updated_at: Mapped[datetime | None]
    """With `event_at` and `event_id` the version of the content, in this order (docs/decisions.md, Order)."""
    event_at: Mapped[datetime | None]
    event_id: Mapped[str | None]
    deleted_by: Mapped[str | None]
    """None: live. `event`: a tombstone for good. `resync`: a tombstone that a confirmed read may undo."""
    revision: Mapped[int] = mapped_column(server_default="0")
    """Counts writes. 0 is a key that was locked in this transaction before its first content."""
    touched_at: Mapped[datetime | None]
    """When it was written last, by the database's clock."""
    erased: Mapped[bool] = mapped_column(server_default=false())
    """Of a tombstone: what was personal in it is gone, and no event brings it back (`worker.mirror.erasure`)."""


class Organization(Mirrored, Base):
    """A workspace."""

    __tablename__ = "organizations"

    name: Mapped[str | None]
    external_id: Mapped[str | None]


class User(Mirrored, Base):
    """A person."""

    __tablename__ = "users"

    email: Mapped[str | None] = mapped_column(index=True)
    email_verified: Mapped[bool | None]
    first_name: Mapped[str | None]
    last_name: Mapped[str | None]
    email_normalized: Mapped[str | None] = mapped_column(index=True)
    """Derived: lower case, the domain normalized; None if it is no address."""
    email_domain: Mapped[str | None]
    """Derived: its domain."""

    __table_args__ = (Index("ix_users_email_domain_id", "email_domain", "id"),)


class UserAddress(Base):
    """An e-mail address that a person has or once had, as a hash: it keeps a removed person out under another id.

    Of an erased person it is kept only while a block needs it.
    """

    __tablename__ = "user_addresses"

    user_id: Mapped[str] = mapped_column(primary_key=True)
    email_hash: Mapped[str] = mapped_column(primary_key=True, index=True)
    """`models.access.Address.hash`."""


class Membership(Mirrored, Base):
    """A person's place in a workspace."""

    __tablename__ = "memberships"

    organization_id: Mapped[str | None]
    user_id: Mapped[str | None] = mapped_column(index=True)
    status: Mapped[str | None]
    """As WorkOS says it; only `active` gives access."""
    workos_roles: Mapped[list[str] | None]
    """All role slugs, sorted."""
    workos_role: Mapped[str | None]
    """The slug that `role` was mapped from."""
    role: Mapped[str | None]
    """The local role: `admin` or `member`."""
    directory_managed: Mapped[bool | None]

    __table_args__ = (
        Index("ix_memberships_organization_id_user_id", "organization_id", "user_id"),
        _index_where("deleted_by IS NULL", "ix_memberships_workos_role", "workos_role"),
    )


class Domain(Mirrored, Base):
    """A domain that a workspace claimed."""

    __tablename__ = "domains"

    organization_id: Mapped[str | None] = mapped_column(index=True)
    domain: Mapped[str | None]
    """As WorkOS says it."""
    normalized: Mapped[str | None] = mapped_column(index=True)
    """Lower case, IDNA (UTS 46), no trailing dot; None if it is no domain name."""
    verification: Mapped[str | None]
    """WorkOS's `state`; `verified` and `legacy_verified` make auto-join."""
    reason: Mapped[str | None]
    """Why verification failed."""


class PublicDomain(Base):
    """A public mail provider's domain, as a package lists it: it never auto-joins."""

    __tablename__ = "public_domains"

    domain: Mapped[str] = mapped_column(primary_key=True)


class Role(Mirrored, Base):
    """An entry of the role catalogue. Its id is `slug`, or `organization_id/slug` for an organization's own."""

    __tablename__ = "roles"

    organization_id: Mapped[str | None] = mapped_column(index=True)
    slug: Mapped[str | None]
    name: Mapped[str | None]
    description: Mapped[str | None]
    permissions: Mapped[list[str] | None]


class Connection(Mirrored, Base):
    """A way to sign in to a workspace with single sign-on."""

    __tablename__ = "connections"

    organization_id: Mapped[str | None] = mapped_column(index=True)
    name: Mapped[str | None]
    connection_type: Mapped[str | None]
    status: Mapped[str | None]
    """WorkOS's `state`; only `active` can be signed in with."""
    domains: Mapped[list[str] | None]
    """Domain names, sorted."""


class AutoJoinState(StrEnum):
    """Where a domain stands on the way to auto-join."""

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
    state: Mapped[str]
    reason: Mapped[str | None]
    since: Mapped[datetime] = mapped_column(server_default=db_now())

    __table_args__ = (
        Index("ix_auto_joins_state", "state"),
        _index_where("domain IS NULL", "ix_auto_joins_invalid", "state"),
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
    state: Mapped[str] = mapped_column(server_default=JoinState.PENDING)
    reason: Mapped[str | None]
    cause: Mapped[str]
    """`event`, `resync`, `operator` or `settings`, as in `changes`."""
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
        _index_where("state IN ('pending', 'undo')", "ix_joins_open", "due_at"),
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
    cause: Mapped[str]
    cause_id: Mapped[str]


class Hook(Base):
    """A follower of `changes` that belongs to the host, and how far it has followed."""

    __tablename__ = "hooks"

    name: Mapped[str] = mapped_column(primary_key=True)
    cursor: Mapped[int] = mapped_column(BigInteger())
    """Every change up to this id was taken, or waits in `hook_deliveries`."""
    leased_until: Mapped[datetime | None]
    fence: Mapped[int] = mapped_column(server_default="0")
    delivered: Mapped[int] = mapped_column(BigInteger(), server_default="0")
    delivered_at: Mapped[datetime | None]
    error: Mapped[str | None]
    """Why changes were passed over, if any ever were."""


class HookDelivery(Base):
    """A change that a hook did not take at once, or that waits for an earlier one of the same object."""

    __tablename__ = "hook_deliveries"

    hook: Mapped[str] = mapped_column(primary_key=True)
    change_id: Mapped[int] = mapped_column(BigInteger(), primary_key=True, autoincrement=False)
    kind: Mapped[str]
    object_id: Mapped[str]
    status: Mapped[str] = mapped_column(server_default="pending")
    """`pending`, or `failed`: set aside until an operator replays it."""
    attempts: Mapped[int] = mapped_column(server_default="0")
    due_at: Mapped[datetime] = mapped_column(server_default=db_now())
    error: Mapped[str | None]
    traceback: Mapped[str | None]

    __table_args__ = (
        Index("ix_hook_deliveries_hook_status", "hook", "status", "due_at"),
        Index("ix_hook_deliveries_object", "hook", "kind", "object_id", "change_id"),
    )


class Change(Base):
    """What changed in the mirror, when and why, in commit order: who has seen n never later finds a smaller id."""

    __tablename__ = "changes"

    id: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer(), "sqlite"), primary_key=True, autoincrement=True
    )
    at: Mapped[datetime] = mapped_column(server_default=db_now())
    kind: Mapped[str]
    object_id: Mapped[str]
    organization_id: Mapped[str | None]
    before: Mapped[dict[str, Any] | None]
    """The content and `state` before; None for a new object. Of a domain also `auto_join` and `auto_join_reason`, of a
    user `erased`."""
    after: Mapped[dict[str, Any]]
    cause: Mapped[str]
    """`event`, `resync`, `operator` or `settings`."""
    cause_id: Mapped[str]

    __table_args__ = (
        Index("ix_changes_object_id_id", "object_id", "id"),
        Index("ix_changes_organization_id_id", "organization_id", "id"),
        {"sqlite_autoincrement": True},
    )


class Mirror(Base):
    """The single row (id 1) that says what this mirror is and how far it is right."""

    __tablename__ = "mirror"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    role_map: Mapped[dict[str, Any]]
    """WorkOS role slug → local role, as in force for every writer."""
    remap_after: Mapped[str | None]
    """Not None while memberships are being re-mapped: the last membership id done (`''` at the start)."""
    auto_join: Mapped[str] = mapped_column(server_default="mirror")
    """`off`, `mirror` or `provision`: as in force for every writer."""
    auto_join_existing: Mapped[bool] = mapped_column(server_default=false())
    """Whether those who signed up before a domain was verified join too."""
    missing_joins: Mapped[int] = mapped_column(server_default="0")
    """How many people should be in a workspace by their domain and are not, when that was last counted."""
    without_admin: Mapped[int] = mapped_column(server_default="0")
    """How many workspaces have members and no admin, when that was last counted."""
    client_id: Mapped[str | None]
    """The WorkOS environment this database is bound to."""
    known_organizations: Mapped[list[str] | None]
    """Some organizations of that environment: a key that sees none of them is another's."""
    backfill_from: Mapped[datetime | None]
    """When the first start began, by WorkOS's clock: catch-up goes on from there."""
    backfilled_at: Mapped[datetime | None]
    cursor: Mapped[str | None]
    """The newest event id the events API returned that is older than its lag."""
    cursor_at: Mapped[datetime | None]
    """That event's time, or the time to start from while there is no cursor."""
    inbox_to: Mapped[datetime | None]
    """Every event up to here that the events API showed by then is in the inbox."""
    inbox_at: Mapped[datetime | None]
    """When that was found, by the database's clock; None once all that was in the inbox then is applied."""
    complete_to: Mapped[datetime | None]
    """Every event up to here is applied, or set aside as failed."""
    event_types: Mapped[list[str] | None]
    """The event types that the code acted on when it last looked."""
    last_resync_at: Mapped[datetime | None]
    changes_dropped_to: Mapped[int] = mapped_column(BigInteger(), server_default="0")
    """Retention has dropped rows of `changes` up to this id: a follower who is not that far has missed some."""


class Read(Base):
    """An object to be read from WorkOS by its id, because nothing that is known here can settle what it is."""

    __tablename__ = "reads"

    kind: Mapped[str] = mapped_column(primary_key=True)
    object_id: Mapped[str] = mapped_column(primary_key=True)
    run_id: Mapped[str] = mapped_column(primary_key=True, server_default="")
    """The resync that asks; empty if an event does."""
    event_id: Mapped[str | None]
    """The event that asks."""
    reason: Mapped[str]
    due_at: Mapped[datetime] = mapped_column(server_default=db_now(), index=True)
    attempts: Mapped[int] = mapped_column(server_default="0")
    error: Mapped[str | None]


class RunStatus(StrEnum):
    """Where a run stands."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Task(StrEnum):
    """What a run does."""

    RESYNC = "resync"
    CATCH_UP = "catch_up"
    RETENTION = "retention"
    REPLAY = "replay"


class Run(Base):
    """A long work: who asked for what, where it stands, and what it found."""

    __tablename__ = "runs"

    id: Mapped[str] = mapped_column(primary_key=True)
    task: Mapped[str]
    organization_id: Mapped[str | None]
    """Only this workspace; None: everything."""
    dry_run: Mapped[bool] = mapped_column(server_default=false())
    approves: Mapped[str | None]
    """The run whose withheld deletions this one carries out."""
    selection: Mapped[dict[str, Any] | None]
    """Of a replay: which events."""
    reason: Mapped[str | None]
    """Of a replay: why, as the operator said."""
    after: Mapped[str | None]
    """Of a replay: the last event id done."""
    done: Mapped[int] = mapped_column(server_default="0")
    total: Mapped[int | None]
    skipped: Mapped[int] = mapped_column(server_default="0")
    """Of a replay: events whose payload is no longer kept."""
    requested_by: Mapped[str]
    status: Mapped[str] = mapped_column(server_default=RunStatus.RUNNING)
    phase: Mapped[str] = mapped_column(server_default="list")
    """Of a resync: `list` what WorkOS has, `delete` what it did not list, `read` what is in doubt, `over`. Others have
    none: it is empty."""
    created_at: Mapped[datetime] = mapped_column(server_default=db_now())
    finished_at: Mapped[datetime | None]
    leased_until: Mapped[datetime | None]
    fence: Mapped[int] = mapped_column(server_default="0")
    """Grows with each worker that takes the run over; one with an older number may write nothing."""
    calls: Mapped[int] = mapped_column(server_default="0")
    error: Mapped[str | None]

    __table_args__ = (Index("ix_runs_created_at", "created_at"),)


class Tick(Base):
    """When the clock last started a duty: whoever moves it on has the duty, so two clocks do no harm."""

    __tablename__ = "ticks"

    name: Mapped[str] = mapped_column(primary_key=True)
    at: Mapped[datetime]


class Listing(Base):
    """One listing of a resync and how far it got: of organizations, users, roles, or one organization's members."""

    __tablename__ = "listings"

    run_id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    """One of `worker.repair.resync.listings.Name`."""
    parent: Mapped[str] = mapped_column(primary_key=True)
    """The organization; empty for the environment's own listings."""
    after: Mapped[str | None]
    """The cursor of the next page."""
    state: Mapped[str] = mapped_column(server_default="open")
    """`open`; `complete` with every item used; `partial` if one was invalid, the parent gone, or it cannot be read."""
    invalid: Mapped[bool] = mapped_column(server_default=false())
    """Whether an item could not be used: then what was not listed may be that item."""
    began_at: Mapped[datetime | None]
    attempts: Mapped[int] = mapped_column(server_default="0")
    """How often it failed while WorkOS answered otherwise."""


class Seen(Base):
    """What a resync's listings showed. Emptied when the run ends."""

    __tablename__ = "seen"

    run_id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)
    object_id: Mapped[str] = mapped_column(primary_key=True)


class Drift(Base):
    """What a resync found different, and what was done about it."""

    __tablename__ = "drift"

    run_id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)
    object_id: Mapped[str] = mapped_column(primary_key=True, index=True)
    organization_id: Mapped[str | None]
    finding: Mapped[str]
    """`missing`, `extra`, `stale`, `different`, `anomaly`, `invalid`."""
    fields: Mapped[dict[str, Any] | None]
    """Field → `[here, WorkOS]`."""
    action: Mapped[str]
    """`repaired`, `reported` (dry run, anomaly, invalid), `withheld`."""


TABLES: dict[Kind, type[Organization | User | Membership | Domain | Role | Connection]] = {
    Kind.ORGANIZATION: Organization,
    Kind.USER: User,
    Kind.MEMBERSHIP: Membership,
    Kind.DOMAIN: Domain,
    Kind.ROLE: Role,
    Kind.CONNECTION: Connection,
}
"""The table of each kind."""

PERSONAL = ("email", "first_name", "last_name")
"""Columns of a user that erasure blanks."""

DERIVED = ("email_normalized", "email_domain")
"""Columns worked out from others whenever a row is written."""

CONTENT: dict[Kind, tuple[str, ...]] = {
    kind: (
        "created_at",
        *(c.name for c in table.__table__.columns if c.name not in (*Mirrored.__annotations__, *DERIVED)),
    )
    for kind, table in TABLES.items()
}
"""The content columns of each kind: what an incoming version may change."""
