"""Long-running jobs, with their listings, reads and findings."""

from datetime import datetime
from enum import StrEnum

from sqlalchemy import Index, false
from sqlalchemy.orm import Mapped, mapped_column

from models.enums import RunStatus, Task
from models.outcomes import Finding
from models.tables.base import Base
from models.types import JsonObject, db_now


class Read(Base):
    """A request to read an object by id, because the data received so far does not decide its state."""

    __tablename__ = "reads"

    kind: Mapped[str] = mapped_column(primary_key=True)
    object_id: Mapped[str] = mapped_column(primary_key=True)
    run_id: Mapped[str] = mapped_column(primary_key=True, server_default="")
    """The resync that requested it; empty if an event did."""
    event_id: Mapped[str | None]
    """The event that requested it."""
    reason: Mapped[str]
    due_at: Mapped[datetime] = mapped_column(server_default=db_now(), index=True)
    attempts: Mapped[int] = mapped_column(server_default="0")
    error: Mapped[str | None]


class Refresh(Base):
    """A product's request to read an object, or a person's access to a workspace, from WorkOS at once."""

    __tablename__ = "refreshes"

    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    """A kind of object, or `access`."""
    object_id: Mapped[str]
    """Of `access`: the workspace."""
    user_id: Mapped[str]
    """Of `access`: the person; otherwise empty."""
    requested_by: Mapped[str]
    """The name of the API token."""
    requested_at: Mapped[datetime] = mapped_column(server_default=db_now())
    due_at: Mapped[datetime] = mapped_column(server_default=db_now())
    attempts: Mapped[int] = mapped_column(server_default="0")
    """Reads that were begun."""
    error: Mapped[str | None]
    """Why the last one failed. None while one is in progress."""


class Phase(StrEnum):
    """The phase of a resync. Other runs have no phases."""

    NONE = ""
    LIST = "list"
    CHOOSE = "delete"
    """Choose deletions, or withhold them."""
    CONFIRM = "read"
    """Make confirmed reads, which also carry out the deletions."""
    OVER = "over"


class Run(Base):
    """A resync, catch-up, replay or other long-running job: the request, who made it, and its progress."""

    __tablename__ = "runs"

    id: Mapped[str] = mapped_column(primary_key=True)
    task: Mapped[Task]
    organization_id: Mapped[str | None]
    """Only this workspace; None: everything."""
    dry_run: Mapped[bool] = mapped_column(server_default=false())
    approves: Mapped[str | None]
    """The run whose withheld deletions this run carries out."""
    selection: Mapped[JsonObject | None]
    """For a replay: which events."""
    reason: Mapped[str | None]
    after: Mapped[str | None]
    """For a replay: the last event id done."""
    done: Mapped[int] = mapped_column(server_default="0")
    """For a replay: events requeued. For a resync that ended and did not compare everything: organizations compared."""
    total: Mapped[int | None]
    """For a replay: events selected. For a resync as above: organizations, None if not known."""
    skipped: Mapped[int] = mapped_column(server_default="0")
    """For a replay: events whose payload is no longer kept."""
    requested_by: Mapped[str]
    status: Mapped[RunStatus] = mapped_column(server_default=RunStatus.RUNNING)
    phase: Mapped[Phase] = mapped_column(server_default=Phase.LIST)
    created_at: Mapped[datetime] = mapped_column(server_default=db_now())
    finished_at: Mapped[datetime | None]
    leased_until: Mapped[datetime | None]
    fence: Mapped[int] = mapped_column(server_default="0")
    """The fencing number: each worker that takes the lease increments it, and may write only while it is unchanged."""
    calls: Mapped[int] = mapped_column(server_default="0")
    error: Mapped[str | None]
    workos_from: Mapped[datetime | None]
    """For a resync: when its first listing was read, by WorkOS's clock."""

    __table_args__ = (Index("ix_runs_created_at", "created_at"), Index("ix_runs_finished_at", "finished_at"))


class Tick(Base):
    """When something last happened: a scheduled task started, counts were refreshed, a secret verified a delivery.

    The clock process that updates a task's row runs the task.
    """

    __tablename__ = "ticks"

    name: Mapped[str] = mapped_column(primary_key=True)
    at: Mapped[datetime]


class ListingState(StrEnum):
    """The state of a listing."""

    OPEN = "open"
    COMPLETE = "complete"
    """Read to the end, and every item was valid."""
    PARTIAL = "partial"
    """An item was invalid, the parent is gone, or the listing cannot be read."""


class Listing(Base):
    """A listing that a resync reads, and its progress."""

    __tablename__ = "listings"

    run_id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    """The name of one of `worker.kinds.LISTINGS`."""
    parent: Mapped[str] = mapped_column(primary_key=True)
    """The organization id; empty for a listing of the whole environment."""
    after: Mapped[str | None]
    """The cursor of the next page."""
    state: Mapped[ListingState] = mapped_column(server_default=ListingState.OPEN)
    invalid: Mapped[bool] = mapped_column(server_default=false())
    """Whether an item was invalid. An object that was not listed may be that item."""
    began_at: Mapped[datetime | None]
    attempts: Mapped[int] = mapped_column(server_default="0")
    """How often it failed while WorkOS answered other requests."""


class Seen(Base):
    """An object that a listing of a resync returned. Deleted when the run ends."""

    __tablename__ = "seen"

    run_id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)
    object_id: Mapped[str] = mapped_column(primary_key=True)


class DriftAction(StrEnum):
    """The action of a resync on a difference."""

    REPAIRED = "repaired"
    REPORTED = "reported"
    """Only reported: in a dry run, or because the difference cannot be repaired."""
    WITHHELD = "withheld"
    """A deletion that waits for an operator's approval."""


class Drift(Base):
    """A difference that a resync found between the mirror and WorkOS."""

    __tablename__ = "drift"

    run_id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)
    object_id: Mapped[str] = mapped_column(primary_key=True, index=True)
    organization_id: Mapped[str | None]
    finding: Mapped[Finding]
    fields: Mapped[JsonObject | None]
    """Field → `[value in the mirror, value in WorkOS]`."""
    action: Mapped[DriftAction]

    __table_args__ = (
        # Holds all that the totals of a run need: the first resync reports the whole mirror.
        Index("ix_drift_totals", "run_id", "kind", "finding", "action", postgresql_concurrently=True),
    )
