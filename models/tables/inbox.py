"""The inbox: events as received, and the batches that drains work on."""

from datetime import datetime
from enum import StrEnum

from sqlalchemy import BigInteger, Index, Integer, SmallInteger
from sqlalchemy.orm import Mapped, mapped_column

from models.enums import EventStatus
from models.outcomes import Outcome
from models.tables.base import Base, index_where
from models.types import db_now


class EventSource(StrEnum):
    """How an event was first received."""

    WEBHOOK = "webhook"
    EVENTS_API = "events_api"


class Event(Base):
    """The inbox: one row for each event id, even if the event is received several times."""

    __tablename__ = "events"

    id: Mapped[str] = mapped_column(primary_key=True)
    type: Mapped[str]
    source: Mapped[EventSource]
    body: Mapped[bytes | None]
    """The raw bytes as received, but for secrets (`worker.decision.payload_secrets`).

    None once retention, erasure or the outcome `ignored` blanked them.
    """
    received_at: Mapped[datetime] = mapped_column(server_default=db_now())
    deliveries: Mapped[int] = mapped_column(server_default="1")
    last_delivered_at: Mapped[datetime] = mapped_column(server_default=db_now())
    webhook_at: Mapped[datetime | None]
    """First delivery by webhook. None is a gap, and a time long after `api_at` is a late delivery."""
    api_at: Mapped[datetime | None] = mapped_column(index=True)
    """When the events API first returned it to catch-up or to the tail, which read the types mirrored at that time."""
    status: Mapped[EventStatus] = mapped_column(server_default=EventStatus.PENDING)
    due_at: Mapped[datetime] = mapped_column(server_default=db_now())
    """A pending event is not attempted before this time."""
    partition_key: Mapped[int] = mapped_column(SmallInteger(), server_default="0")
    """Derived from the object's id, so that concurrent drains choose different objects."""
    attempts: Mapped[int] = mapped_column(server_default="0")
    """Failed attempts since the last replay that count towards the limit."""
    outcome: Mapped[Outcome | None]
    decided_by: Mapped[str | None]
    """The event id of the version that won over a stale or tombstoned event, or that an applied tie replaced.

    Empty: that version was read from the API.
    """
    error: Mapped[str | None]
    """Why the last attempt failed; None if it has not failed. Not every failed attempt counts in `attempts`."""
    fingerprint: Mapped[str | None]
    """A hash of the error that is equal for events with the same cause."""
    traceback: Mapped[str | None]
    """Without values. None if the payload was at fault."""
    replays: Mapped[int] = mapped_column(server_default="0")
    replay_id: Mapped[str | None]
    """The last run that replayed it."""
    dismissed_by: Mapped[str | None]
    dismissed_why: Mapped[str | None]
    processed_at: Mapped[datetime | None]
    occurred_at: Mapped[datetime | None]
    """The event's own time; None until the events API has returned it or a drain has read it."""
    kind: Mapped[str | None]
    """With `object_id` and `organization_id`: the event's object; None until a drain has read the event. For a failed
    event, as far as its payload can be read."""
    object_id: Mapped[str | None]
    organization_id: Mapped[str | None]
    traceparent: Mapped[str | None]
    """The span in which it was received first, if its trace is sent (`worker.traces`)."""

    __table_args__ = (
        index_where("status = 'pending'", "ix_events_pending", "due_at", "id"),
        index_where("status = 'failed'", "ix_events_failed", "received_at"),
        index_where("status = 'pending'", "ix_events_pending_received_at", "received_at"),
        index_where("webhook_at IS NULL", "ix_events_gap", "api_at"),
        # With both times: PostgreSQL expects a third of the table here, and would start workers to read the rows.
        index_where("webhook_at > api_at", "ix_events_late_times", "api_at", "webhook_at", concurrently=True),
        Index("ix_events_received_at", "received_at"),
        Index("ix_events_type", "type", "received_at"),
        index_where("replay_id IS NOT NULL", "ix_events_replay_id", "replay_id"),
        index_where("object_id IS NOT NULL", "ix_events_object_id", "object_id"),
        index_where("organization_id IS NOT NULL", "ix_events_organization_id", "organization_id", "received_at"),
        index_where("status = 'dismissed'", "ix_events_dismissed", "received_at", concurrently=True),
        index_where(
            "fingerprint IS NOT NULL", "ix_events_fingerprint", "fingerprint", "received_at", concurrently=True
        ),
    )


class FailedAttempt(Base):
    """A failed attempt to apply an event, with the `error`, `fingerprint` and `traceback` of that attempt.

    The newest attempts of each event are kept (`worker.inbox.attempts`), at most as long as its payload, which an error
    may quote.
    """

    __tablename__ = "failed_attempts"

    id: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer(), "sqlite"), primary_key=True, autoincrement=True
    )
    event_id: Mapped[str]
    at: Mapped[datetime] = mapped_column(server_default=db_now())
    error: Mapped[str]
    fingerprint: Mapped[str | None]
    """None for a temporary error, which costs no attempt."""
    traceback: Mapped[str | None]

    __table_args__ = (Index("ix_failed_attempts_event_id", "event_id", "id"),)


class Batch(Base):
    """A batch of events, committed before it is attempted. The transaction that applies it deletes the row.

    The events of a batch whose drain crashed run again in halves, until the event at fault is alone.
    """

    __tablename__ = "batches"

    id: Mapped[str] = mapped_column(primary_key=True)
    event_ids: Mapped[list[str]]
    started_at: Mapped[datetime | None]
    """None: the batch is half of one that failed, and waits for a drain."""
