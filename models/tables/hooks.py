"""The product's hooks, and the deliveries they did not accept."""

from datetime import datetime
from enum import StrEnum

from sqlalchemy import BigInteger, Index
from sqlalchemy.orm import Mapped, mapped_column

from models.tables.base import Base
from models.types import db_now


class Hook(Base):
    """A hook of the product, and how far it has read `changes`."""

    __tablename__ = "hooks"

    name: Mapped[str] = mapped_column(primary_key=True)
    cursor: Mapped[int] = mapped_column(BigInteger())
    """Every change up to this id was delivered, or is in `hook_deliveries`."""
    leased_until: Mapped[datetime | None]
    fence: Mapped[int] = mapped_column(server_default="0")
    delivered: Mapped[int] = mapped_column(BigInteger(), server_default="0")
    delivered_at: Mapped[datetime | None]
    error: Mapped[str | None]
    """Why changes were skipped, if any ever were."""


class DeliveryStatus(StrEnum):
    """The state of a delivery that the hook did not accept."""

    PENDING = "pending"
    FAILED = "failed"
    """No attempts are left. An operator can retry or dismiss it."""


class HookDelivery(Base):
    """A change that a hook did not accept at once, or that waits for an earlier change of the same object."""

    __tablename__ = "hook_deliveries"

    hook: Mapped[str] = mapped_column(primary_key=True)
    change_id: Mapped[int] = mapped_column(BigInteger(), primary_key=True, autoincrement=False)
    kind: Mapped[str]
    object_id: Mapped[str]
    status: Mapped[DeliveryStatus] = mapped_column(server_default=DeliveryStatus.PENDING)
    attempts: Mapped[int] = mapped_column(server_default="0")
    due_at: Mapped[datetime] = mapped_column(server_default=db_now())
    error: Mapped[str | None]
    traceback: Mapped[str | None]
    fingerprint: Mapped[str | None]
    """A hash of the error that is equal for deliveries with the same cause."""
    attempted_at: Mapped[datetime | None]
    """When the last attempt failed."""

    __table_args__ = (
        Index("ix_hook_deliveries_hook_status", "hook", "status", "due_at"),
        Index("ix_hook_deliveries_object", "hook", "kind", "object_id", "change_id"),
    )
