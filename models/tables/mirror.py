"""The columns that all mirrored objects share, the changes, and the state of the mirror."""

from datetime import datetime
from enum import StrEnum

from sqlalchemy import BigInteger, Index, Integer, false
from sqlalchemy.orm import Mapped, mapped_column

from models.tables.base import Base
from models.types import JsonObject, db_now


class Cause(StrEnum):
    """The cause of a change."""

    EVENT = "event"
    RESYNC = "resync"
    OPERATOR = "operator"
    SETTINGS = "settings"
    REFRESH = "refresh"
    """A product asked for the object to be read from WorkOS."""


class DeletedBy(StrEnum):
    """The source of a tombstone."""

    EVENT = "event"
    """A delete event: the tombstone is final."""
    RESYNC = "resync"
    """A 404 to a read, for a resync, an event, a refresh or a revocation. A later read can bring the object back."""


class Mirrored(Base):
    """The columns that every mirrored object has in addition to its content."""

    __abstract__ = True

    id: Mapped[str] = mapped_column(primary_key=True)
    created_at: Mapped[datetime | None]
    updated_at: Mapped[datetime | None]
    """With `event_at`: the version of the content (docs/decisions.md, Order). After a read, `event_id` is empty."""
    event_at: Mapped[datetime | None]
    event_id: Mapped[str | None]
    deleted_by: Mapped[DeletedBy | None]
    """None for a live object."""
    revision: Mapped[int] = mapped_column(server_default="0")
    """Incremented by each write. 0 is a new row that was inserted only to be locked."""
    touched_at: Mapped[datetime | None]
    """When it was last written, by the database's clock."""
    erased: Mapped[bool] = mapped_column(server_default=false())
    """Its personal data is blanked, and no event restores it (`worker.mirror.erasure`)."""
    column_versions: Mapped[JsonObject | None]
    """Of the columns that payloads may omit, those that a payload has contained: name → `[updated_at, event_at,
    event_id]` of that payload, or null if that is the version of the row."""


class UserAddress(Base):
    """The hash of an e-mail address that a person has or once had. It keeps a removed person out under another id.

    For an erased person it is kept only while a block needs it.
    """

    __tablename__ = "user_addresses"

    user_id: Mapped[str] = mapped_column(primary_key=True)
    email_hash: Mapped[str] = mapped_column(primary_key=True, index=True)
    """`models.addresses.Address.hash`."""


class InvitedAddress(Base):
    """The hash of an e-mail address that an invitation has or once had. It keeps the person from joining by domain.

    For an erased invitation it is kept only while a block needs it.
    """

    __tablename__ = "invited_addresses"

    invitation_id: Mapped[str] = mapped_column(primary_key=True)
    email_hash: Mapped[str] = mapped_column(primary_key=True, index=True)
    """`models.addresses.Address.hash`."""


class PublicDomain(Base):
    """A domain of a public mail provider. It never auto-joins."""

    __tablename__ = "public_domains"

    domain: Mapped[str] = mapped_column(primary_key=True)


ROLE_MAP = "role_map"
"""The `kind` of rows in `changes` about the setting `ROLE_MAP`. Their content is `roles`: the role map in force."""


class Change(Base):
    """A change of the mirror. Ids are in commit order: a reader that has seen n never later finds a smaller id."""

    __tablename__ = "changes"

    id: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer(), "sqlite"), primary_key=True, autoincrement=True
    )
    at: Mapped[datetime] = mapped_column(server_default=db_now())
    """When its id was assigned, as the last step before the commit. All changes of a transaction have the same time."""
    kind: Mapped[str]
    object_id: Mapped[str]
    organization_id: Mapped[str | None]
    before: Mapped[JsonObject | None]
    """The content and `state`; None for a new object. A domain also has `auto_join` and `auto_join_reason`; a user,
    a membership and an invitation have `erased`."""
    after: Mapped[JsonObject]
    cause: Mapped[Cause]
    cause_id: Mapped[str]
    actor_id: Mapped[str | None]
    """The actor at WorkOS: `context.actor` of the event, with its name and source. None if absent."""
    actor_name: Mapped[str | None]
    """Blanked after `ERASE_AFTER_DAYS`, or once the actor or the object's person is erased."""
    actor_source: Mapped[str | None]
    previous_attributes: Mapped[JsonObject | None]
    """`context.previous_attributes` of the event; blanked as `actor_name`."""
    workos_at: Mapped[datetime | None]
    """When WorkOS made the change, by its clock; if only a read found it, the latest possible time. None if it was not
    made at WorkOS, or before release 2.0."""
    workos_after: Mapped[datetime | None]
    """If only a read found the change: the earliest possible time. None if `workos_at` is exact."""

    __table_args__ = (
        Index("ix_changes_object_id_id", "object_id", "id"),
        Index("ix_changes_organization_id_id", "organization_id", "id"),
        Index("ix_changes_at_id", "at", "id", postgresql_concurrently=True),
        {"sqlite_autoincrement": True},
    )


class LateVersion(Base):
    """A state that WorkOS had and the mirror never had: its event arrived after the event of a newer state."""

    __tablename__ = "late_versions"

    event_id: Mapped[str] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(server_default=db_now(), index=True)
    """When it arrived, by the database's clock."""
    kind: Mapped[str]
    object_id: Mapped[str]
    organization_id: Mapped[str | None]
    content: Mapped[JsonObject]
    """As `changes.after`."""
    workos_at: Mapped[datetime]
    """When WorkOS made the change, by its clock."""
    workos_until: Mapped[datetime | None]
    """When the next version began, of those known when this one arrived. None if no event reported that one."""
    actor_id: Mapped[str | None]
    actor_source: Mapped[str | None]

    __table_args__ = (Index("ix_late_versions_object_id_workos_at", "object_id", "workos_at"),)


class AutoJoinMode(StrEnum):
    """The setting `AUTO_JOIN`: what happens when a user's address is on a verified domain."""

    OFF = "off"
    MIRROR = "mirror"
    PROVISION = "provision"


class MirrorState(Base):
    """The single row (id 1) about the whole mirror."""

    __tablename__ = "mirror"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    role_map: Mapped[JsonObject]
    """WorkOS role slug → local role. All processes use this map."""
    remap_after: Mapped[str | None]
    """The last membership re-mapped since `role_map` changed (`''` at the start); None when re-mapping is complete."""
    withheld_role_map: Mapped[JsonObject | None]
    """A map that an operator must approve: `role_map`, the `promotions` that it would make, and all `members`."""
    auto_join: Mapped[AutoJoinMode] = mapped_column(server_default=AutoJoinMode.MIRROR)
    auto_join_existing: Mapped[bool] = mapped_column(server_default=false())
    """Whether people who signed up before their domain was verified join too."""
    revokes_sessions_since: Mapped[datetime | None]
    """When `REVOKE_SESSIONS` was turned on, by the database's clock; None while it is off."""
    missing_joins: Mapped[int] = mapped_column(server_default="0")
    """The number of people who should have joined a workspace and have not, when last counted."""
    without_admin: Mapped[int] = mapped_column(server_default="0")
    """The number of workspaces that have members but no admin, when last counted."""
    environment_name: Mapped[str | None]
    """`ENVIRONMENT_NAME`, as `migrate` recorded it."""
    database_id: Mapped[str | None]
    """A random id, by which the database claims our keys in Redis (`worker.bootstrap.claim_redis`)."""
    client_id: Mapped[str | None]
    """The WorkOS environment this database is bound to."""
    known_organizations: Mapped[list[str] | None]
    """Some organizations of that environment. An API key that can read none of them belongs to another environment."""
    backfill_from: Mapped[datetime | None]
    """Five minutes before the first start, by WorkOS's clock. Catch-up continues from this time."""
    backfilled_at: Mapped[datetime | None]
    cursor: Mapped[str | None]
    """The newest event id from the events API that is older than the API's lag."""
    cursor_at: Mapped[datetime | None]
    """The time of that event, or the time to start from while there is no cursor."""
    inbox_to: Mapped[datetime | None]
    """Every event up to this time is in the inbox, as far as the events API had it at `inbox_at`."""
    inbox_at: Mapped[datetime | None]
    """By the database's clock; None when all events that were in the inbox at that time are applied."""
    complete_to: Mapped[datetime | None]
    """Every event up to this time is applied or failed, counting `CATCH_UP_LAG_SECONDS`. Provisioning relies on it.
    The views and bounded answers use `models.tables.Tail.complete_to`."""
    event_types: Mapped[list[str] | None]
    """The event types that the running release handles, as last recorded."""
    new_types: Mapped[JsonObject | None]
    """`types` that are still to be read from the events API, as far back as it goes, and the event id to continue
    `after` (`worker.repair.new_types`). None: there are none."""
    last_resync_at: Mapped[datetime | None]
    verified_at: Mapped[datetime | None]
    """When the last full resync that compared and repaired everything began, by WorkOS's clock. Rows that were last
    written before `verified_rows_to` equaled WorkOS then."""
    verified_rows_to: Mapped[datetime | None]
    """When that resync began, by the database's clock."""
    listed_kinds: Mapped[list[str] | None]
    """The kinds whose environment-wide listing a full resync has read to the end."""
    actors_blanked_to: Mapped[int] = mapped_column(BigInteger(), server_default="0")
    """Up to this id of `changes`, retention has blanked the names of actors and the previous attributes."""
    changes_dropped_to: Mapped[int] = mapped_column(BigInteger(), server_default="0")
    """The highest id that retention deleted from `changes`. A reader with a lower cursor has missed changes."""
    changes_dropped_at: Mapped[datetime | None]
    """The time of that change. No earlier state can be reconstructed. None if there is none."""
    late_versions_since: Mapped[datetime | None]
    """When the mirror was upgraded to a release that keeps late versions and WorkOS's times. None if it always did."""
