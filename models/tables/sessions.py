"""WorkOS sessions to end because their person lost access."""

from datetime import datetime
from enum import StrEnum

from sqlalchemy import BigInteger, Index
from sqlalchemy.orm import Mapped, mapped_column

from models.tables.base import Base, index_where
from models.types import db_now


class RevocationState(StrEnum):
    """The state of a revocation."""

    PENDING = "pending"
    DONE = "done"
    DROPPED = "dropped"
    """Not completed: the person has access again, or `REVOKE_SESSIONS` was turned off."""


class Total(Base):
    """A number that only grows, for a metric. Unlike the counters in Redis, no kill of a process lowers it."""

    __tablename__ = "totals"

    name: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger())


SESSIONS_REVOKED = "sessions_revoked"
"""The total of the sessions that were revoked, as in the audit."""


class Revocation(Base):
    """The sessions of a person in a workspace, to be revoked because their access there ended.

    A later loss of the same person in the same workspace replaces the row.
    """

    __tablename__ = "revocations"

    organization_id: Mapped[str] = mapped_column(primary_key=True)
    """Empty: the user was deleted, so all of their sessions end."""
    user_id: Mapped[str] = mapped_column(primary_key=True, index=True)
    kind: Mapped[str]
    """With `object_id`: the membership, workspace or user that ended the access."""
    object_id: Mapped[str]
    event_id: Mapped[str | None]
    """The event that reported it; None if a read of WorkOS found it."""
    since: Mapped[datetime]
    """When access ended, by WorkOS's clock. For an object that a read found deleted: when it was found."""
    state: Mapped[RevocationState] = mapped_column(server_default=RevocationState.PENDING)
    reason: Mapped[str | None]
    """Why it was dropped."""
    created_at: Mapped[datetime] = mapped_column(server_default=db_now())
    due_at: Mapped[datetime] = mapped_column(server_default=db_now())
    settled_at: Mapped[datetime | None]
    claim: Mapped[int] = mapped_column(server_default="0")
    """The fencing number: each worker that claims the row, and each later loss, increments it. A worker may write only
    while it is unchanged."""
    attempts: Mapped[int] = mapped_column(server_default="0")
    """Attempts that failed."""
    sessions: Mapped[int] = mapped_column(server_default="0")
    """Number of sessions revoked. One whose call had no usable answer may count once for each attempt. When the row is
    settled, they are added to the total `SESSIONS_REVOKED`."""
    error: Mapped[str | None]

    __table_args__ = (
        Index("ix_revocations_state", "state"),
        index_where("state = 'pending'", "ix_revocations_pending", "due_at"),
    )
