"""The inbox: events as received, and the batches that drains work on."""

from datetime import datetime
from enum import StrEnum

from sqlalchemy import Index, SmallInteger
from sqlalchemy.orm import Mapped, mapped_column

from models.outcomes import Outcome
from models.tables.base import Base, index_where
from models.types import EnumText, db_now


class EventSource(StrEnum):
    """How an event came first."""

    WEBHOOK = "webhook"
    EVENTS_API = "events_api"


class EventStatus(StrEnum):
    """Where an inbox row stands."""

    PENDING = "pending"
    DONE = "done"
    FAILED = "failed"
    DISMISSED = "dismissed"
    """Failed, and an operator said that it need not be applied."""


class Event(Base):
    """The inbox: one row for every event id, whichever way and however often it came."""

    __tablename__ = "events"

    id: Mapped[str] = mapped_column(primary_key=True)
    type: Mapped[str]
    source: Mapped[EventSource] = mapped_column(EnumText(EventSource))
    """How it came first."""
    body: Mapped[bytes | None]
    """The raw bytes as received. None once retention, erasure or the outcome `ignored` blanked them."""
    received_at: Mapped[datetime] = mapped_column(server_default=db_now())
    deliveries: Mapped[int] = mapped_column(server_default="1")
    last_delivered_at: Mapped[datetime] = mapped_column(server_default=db_now())
    webhook_at: Mapped[datetime | None]
    """When a webhook brought it first; long after `api_at`: late, never: a gap."""
    api_at: Mapped[datetime | None] = mapped_column(index=True)
    """When the events API brought it first."""
    status: Mapped[EventStatus] = mapped_column(EnumText(EventStatus), server_default=EventStatus.PENDING)
    due_at: Mapped[datetime] = mapped_column(server_default=db_now())
    """A pending event is not tried before this, by the database's clock."""
    partition_key: Mapped[int] = mapped_column(SmallInteger(), server_default="0")
    """Made from the object's id, so that drains at work at the same time can choose different objects."""
    attempts: Mapped[int] = mapped_column(server_default="0")
    outcome: Mapped[Outcome | None] = mapped_column(EnumText(Outcome))
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
        index_where("status = 'pending'", "ix_events_pending", "due_at", "id"),
        index_where("status = 'failed'", "ix_events_failed", "received_at"),
        index_where("status = 'pending'", "ix_events_pending_received_at", "received_at"),
        index_where("webhook_at IS NULL", "ix_events_gap", "api_at"),
        index_where("webhook_at > api_at", "ix_events_late", "api_at"),
        Index("ix_events_received_at", "received_at"),
        Index("ix_events_type", "type", "received_at"),
        index_where("replay_id IS NOT NULL", "ix_events_replay_id", "replay_id"),
        index_where("object_id IS NOT NULL", "ix_events_object_id", "object_id"),
        index_where("organization_id IS NOT NULL", "ix_events_organization_id", "organization_id", "received_at"),
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
