"""Notifications: which target knows about which condition."""

from datetime import datetime

from sqlalchemy import false
from sqlalchemy.orm import Mapped, mapped_column

from models.tables.base import Base
from models.types import db_now


class NotifyTarget(Base):
    """A target of `NOTIFY`. Its lease lets one process at a time send to it."""

    __tablename__ = "notify_targets"

    name: Mapped[str] = mapped_column(primary_key=True)
    """It contains no secret: `slack`, or the host of a URL."""
    leased_until: Mapped[datetime | None]
    fence: Mapped[int] = mapped_column(server_default="0")
    attempts: Mapped[int] = mapped_column(server_default="0")
    """Attempts that failed since the last message that the target accepted."""
    due_at: Mapped[datetime] = mapped_column(server_default=db_now())
    error: Mapped[str | None]
    """Why the last one failed."""


class Notice(Base):
    """A condition that holds or has held, as one target knows it."""

    __tablename__ = "notices"

    target: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    """The condition."""
    subject: Mapped[str] = mapped_column(primary_key=True)
    """The hook, lane or target that it is about; otherwise empty."""
    severity: Mapped[str]
    """The worst that the target was notified of; before that, the present one."""
    since: Mapped[datetime]
    """When it was first seen, or seen again after a gap of a minute or more."""
    attempted: Mapped[bool] = mapped_column(server_default=false())
    """Whether a message about it was sent, which the target may have accepted before its process was killed."""
    notified_at: Mapped[datetime | None]
    """When the target last accepted a message about it; None if it never has."""
    gone_since: Mapped[datetime | None]
    """When it was first seen not to hold any more."""
