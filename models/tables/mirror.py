"""The mirror: the columns that all mirrored objects share, the changes, and the state of the mirror."""

from datetime import datetime
from enum import StrEnum

from sqlalchemy import BigInteger, Index, Integer, false
from sqlalchemy.orm import Mapped, mapped_column

from models.tables.base import Base
from models.types import EnumText, JsonObject, db_now


class Cause(StrEnum):
    """What made a change."""

    EVENT = "event"
    RESYNC = "resync"
    OPERATOR = "operator"
    SETTINGS = "settings"


class DeletedBy(StrEnum):
    """What deleted an object."""

    EVENT = "event"
    """A delete event: the tombstone is final."""
    RESYNC = "resync"
    """A resync: a confirmed read can bring the object back."""


class Mirrored(Base):
    """The columns that every mirrored object has in addition to its content."""

    __abstract__ = True

    id: Mapped[str] = mapped_column(primary_key=True)
    created_at: Mapped[datetime | None]
    updated_at: Mapped[datetime | None]
    """With `event_at` and `event_id` the version of the content, in this order (docs/decisions.md, Order)."""
    event_at: Mapped[datetime | None]
    event_id: Mapped[str | None]
    deleted_by: Mapped[DeletedBy | None] = mapped_column(EnumText(DeletedBy))
    """None: live."""
    revision: Mapped[int] = mapped_column(server_default="0")
    """Counts writes. 0 is a key that was locked in this transaction before its first content."""
    touched_at: Mapped[datetime | None]
    """When it was written last, by the database's clock."""
    erased: Mapped[bool] = mapped_column(server_default=false())
    """Of a tombstone: what was personal in it is gone, and no event brings it back (`worker.mirror.erasure`)."""


class UserAddress(Base):
    """An e-mail address that a person has or once had, as a hash: it keeps a removed person out under another id.

    Of an erased person it is kept only while a block needs it.
    """

    __tablename__ = "user_addresses"

    user_id: Mapped[str] = mapped_column(primary_key=True)
    email_hash: Mapped[str] = mapped_column(primary_key=True, index=True)
    """`models.addresses.Address.hash`."""


class PublicDomain(Base):
    """A public mail provider's domain, as a package lists it: it never auto-joins."""

    __tablename__ = "public_domains"

    domain: Mapped[str] = mapped_column(primary_key=True)


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
    before: Mapped[JsonObject | None]
    """The content and `state` before; None for a new object. Of a domain also `auto_join` and `auto_join_reason`, of a
    user `erased`."""
    after: Mapped[JsonObject]
    cause: Mapped[Cause] = mapped_column(EnumText(Cause))
    cause_id: Mapped[str]

    __table_args__ = (
        Index("ix_changes_object_id_id", "object_id", "id"),
        Index("ix_changes_organization_id_id", "organization_id", "id"),
        {"sqlite_autoincrement": True},
    )


class AutoJoinMode(StrEnum):
    """The setting `AUTO_JOIN`: what happens when a user's address is on a verified domain."""

    OFF = "off"
    MIRROR = "mirror"
    PROVISION = "provision"


class Mirror(Base):
    """The single row (id 1) that says what this mirror is and how far it is right."""

    __tablename__ = "mirror"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    role_map: Mapped[JsonObject]
    """WorkOS role slug → local role, as in force for every writer."""
    remap_after: Mapped[str | None]
    """Not None while memberships are being re-mapped: the last membership id done (`''` at the start)."""
    auto_join: Mapped[AutoJoinMode] = mapped_column(EnumText(AutoJoinMode), server_default=AutoJoinMode.MIRROR)
    """As in force for every writer."""
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
    """Every event up to this time is applied or has failed."""
    event_types: Mapped[list[str] | None]
    """The event types that the code acted on when it last looked."""
    last_resync_at: Mapped[datetime | None]
    listed_kinds: Mapped[list[str] | None]
    """The kinds of which a finished full resync has read the listing of the whole environment to the end."""
    changes_dropped_to: Mapped[int] = mapped_column(BigInteger(), server_default="0")
    """Retention has dropped rows of `changes` up to this id: a follower who is not that far has missed some."""
