"""How fresh the mirror is: how far the events API was read and applied, and what failed events may have changed."""

from datetime import datetime

from sqlalchemy import Index
from sqlalchemy.orm import Mapped, mapped_column

from models.tables.base import Base
from models.types import db_now


class Tail(Base):
    """The single row about the process that tails the events API (`worker.repair.tail`).

    A time by WorkOS's clock has beside it the same moment by the database's clock, from which its age is measured.
    """

    __tablename__ = "tail"

    id: Mapped[str] = mapped_column(primary_key=True)
    leased_until: Mapped[datetime | None]
    fence: Mapped[int] = mapped_column(server_default="0")
    hold_back_seconds: Mapped[float] = mapped_column(server_default="15")
    """`HOLD_BACK_SECONDS` of the worker."""
    tail_seconds: Mapped[float] = mapped_column(server_default="5")
    """`TAIL_SECONDS` of the worker."""
    interval_seconds: Mapped[float] = mapped_column(server_default="5")
    """The interval between two reads now: longer than `tail_seconds` if the share of the rate limit is not enough."""
    cursor: Mapped[str | None]
    """The id of the event to continue after."""
    read_to: Mapped[datetime | None]
    """By WorkOS's clock: every event up to this time, shown within `hold_back_seconds`, is in the inbox."""
    read_at: Mapped[datetime | None]
    """The database's time when WorkOS's clock showed `read_to`."""
    complete_to: Mapped[datetime | None]
    """As `read_to`: and those events are applied, or have failed. Failed events that may affect access are in
    `uncertain_access`."""
    complete_at: Mapped[datetime | None]
    """The database's time when WorkOS's clock showed `complete_to`."""
    late_events: Mapped[int] = mapped_column(server_default="0")
    """Number of events that the events API showed later than `hold_back_seconds`."""
    error: Mapped[str | None]
    """Why the last read failed; None if it succeeded."""


class FailedEffect(Base):
    """Access that may have been changed by an event that failed or waits for its next attempt.

    A row names a workspace and a person. If an id is empty, the row applies to all workspaces, or to all persons.
    """

    __tablename__ = "failed_effects"

    organization_id: Mapped[str] = mapped_column(primary_key=True)
    user_id: Mapped[str] = mapped_column(primary_key=True)
    event_id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str | None]
    object_id: Mapped[str | None]
    """With `kind`: the object that the event is about. A confirmed read of it ends the uncertainty. None: unknown; a
    resync of the workspace or of everything ends it."""
    since: Mapped[datetime] = mapped_column(server_default=db_now())

    __table_args__ = (
        Index("ix_failed_effects_event_id", "event_id"),
        Index("ix_failed_effects_object", "kind", "object_id"),
    )
