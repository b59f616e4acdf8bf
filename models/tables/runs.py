"""Long-running jobs, their listings, reads and findings."""

from datetime import datetime
from enum import StrEnum

from sqlalchemy import Index, false
from sqlalchemy.orm import Mapped, mapped_column

from models.outcomes import Finding
from models.tables.base import Base
from models.types import EnumText, JsonObject, db_now


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


class Phase(StrEnum):
    """How far a resync has got. Other runs have no phases."""

    NONE = ""
    LIST = "list"
    DELETE = "delete"
    READ = "read"
    OVER = "over"


class Run(Base):
    """A long work: who asked for what, where it stands, and what it found."""

    __tablename__ = "runs"

    id: Mapped[str] = mapped_column(primary_key=True)
    task: Mapped[Task] = mapped_column(EnumText(Task))
    organization_id: Mapped[str | None]
    """Only this workspace; None: everything."""
    dry_run: Mapped[bool] = mapped_column(server_default=false())
    approves: Mapped[str | None]
    """The run whose withheld deletions this one carries out."""
    selection: Mapped[JsonObject | None]
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
    status: Mapped[RunStatus] = mapped_column(EnumText(RunStatus), server_default=RunStatus.RUNNING)
    phase: Mapped[Phase] = mapped_column(EnumText(Phase), server_default=Phase.LIST)
    created_at: Mapped[datetime] = mapped_column(server_default=db_now())
    finished_at: Mapped[datetime | None]
    leased_until: Mapped[datetime | None]
    fence: Mapped[int] = mapped_column(server_default="0")
    """Grows with each worker that takes the run over; one with an older number may write nothing."""
    calls: Mapped[int] = mapped_column(server_default="0")
    error: Mapped[str | None]

    __table_args__ = (Index("ix_runs_created_at", "created_at"),)


class Tick(Base):
    """When the clock last started a task. The clock that updates the row runs the task, so two clocks are safe."""

    __tablename__ = "ticks"

    name: Mapped[str] = mapped_column(primary_key=True)
    at: Mapped[datetime]


class ListingState(StrEnum):
    """How a listing ended, or that it has not."""

    OPEN = "open"
    COMPLETE = "complete"
    """Every item was used."""
    PARTIAL = "partial"
    """An item was invalid, the parent is gone, or the listing cannot be read."""


class Listing(Base):
    """One listing of a resync and how far it got: of organizations, users, roles, or one organization's members."""

    __tablename__ = "listings"

    run_id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    """The name of one of `worker.kinds.LISTINGS`."""
    parent: Mapped[str] = mapped_column(primary_key=True)
    """The organization; empty for the environment's own listings."""
    after: Mapped[str | None]
    """The cursor of the next page."""
    state: Mapped[ListingState] = mapped_column(EnumText(ListingState), server_default=ListingState.OPEN)
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


class DriftAction(StrEnum):
    """What a resync did about a difference."""

    REPAIRED = "repaired"
    REPORTED = "reported"
    """Nothing: it was a dry run, or the difference cannot be repaired."""
    WITHHELD = "withheld"
    """A deletion that waits for an operator's approval."""


class Drift(Base):
    """What a resync found different, and what was done about it."""

    __tablename__ = "drift"

    run_id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)
    object_id: Mapped[str] = mapped_column(primary_key=True, index=True)
    organization_id: Mapped[str | None]
    finding: Mapped[Finding] = mapped_column(EnumText(Finding))
    fields: Mapped[JsonObject | None]
    """Field → `[here, WorkOS]`."""
    action: Mapped[DriftAction] = mapped_column(EnumText(DriftAction))
