"""The definition of a kind of WorkOS object: its table, payload, event types, listings and parents."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.sql.elements import KeyedColumnElement

from models.tables import Mirrored
from models.types import JsonObject
from worker.decision.decide import Content, State, TieBreak, Version, no_tie_break
from worker.decision.payload import EPOCH, Envelope, Fields
from worker.errors import PayloadError

RoleMap = Mapping[str, str]
"""WorkOS role slug → local role."""
Path = tuple[str, ...]
"""The segments of a path of WorkOS's API."""
ObjectReader = Callable[[object, str], Iterable[tuple[str, object]]]
"""Takes an item of a listing and the organization id; yields the kind's name and the JSON of each object in it."""


class Snapshot(NamedTuple):
    """The state of one object in one payload."""

    kind: "Kind"
    id: str
    state: State


ContentReader = Callable[[Fields, RoleMap], JsonObject]
"""Reads the content columns from a payload."""
EventReader = Callable[["Kind", Fields, Envelope, RoleMap], Snapshot]
"""Reads the `data` of one event type."""


class Frequency(StrEnum):
    """How often a full resync fetches a listing."""

    ONCE = "once"
    EACH_ORGANIZATION = "each organization"
    ORGANIZATIONS_WITH_ROLES = "organizations with roles of their own"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class Listing:
    """A listing of WorkOS's API.

    Args:
        name: stored in the table `listings`, so it must not change.
        path: the path, given the organization id, which is empty in a listing of the whole environment. None: the
            object with that id is read, as a listing of one.
        params: query parameters, given the organization id.
        paged: whether WorkOS answers in pages.
        full_resync: how often a full resync fetches it.
        workspace_resync: whether the resync of one workspace fetches it.
        required: whether a full resync fails if the listing of the whole environment fails. If the listing of one
            organization fails, the resync is incomplete.
        objects: yields the objects in an item; raises `PayloadError` if one is missing. None: the item is the object.
    """

    name: str
    path: Callable[[str], Path] | None
    params: Callable[[str], JsonObject] = lambda _organization_id: {}
    paged: bool = True
    full_resync: Frequency = Frequency.ONCE
    workspace_resync: bool = False
    required: bool = True
    objects: ObjectReader | None = None


@dataclass(frozen=True, slots=True)
class ShownBy:
    """A listing that shows every live object of a kind. An object that it does not show may have been deleted."""

    listing: str
    parent: InstrumentedAttribute[str | None] | None = None
    """The column with the organization id, if each organization has its own listing."""
    only: ColumnElement[bool] | None = None
    """A condition on the rows that this listing shows."""


@dataclass(frozen=True, eq=False)
class Kind:
    """One kind of WorkOS object.

    Args:
        name: stored in the columns `kind`, so it must not change.
        object: the value of `object` in WorkOS's answer to a read by id.
        table: the mirror table.
        content: reads the content columns from a payload.
        events: event type → how its `data` is read.
        read_path: the path that reads one object by its key; empty if WorkOS shows such objects only in events.
        listings: the listings that fetch objects of this kind.
        shown_by: the listings by which a resync finds deleted objects.
        label: the column that names an object to people.
        parents: column → name of the kind whose id it contains. Live objects must have the column. A parent that stays
            missing is read.
        id_field: the payload's field that identifies an object.
        key: the key in the mirror, from that field's value and the content.
        delete_is_final: False for an object that is identified by a slug and can be created again. Its states are
            ordered by event time alone.
        organization_of: the id of the workspace an object belongs to, from its key and content.
        from_read: converts the answer to a read by key to an item with the fields of events, or None if the object is
            gone. Raises `PayloadError` if WorkOS answered with another object.
        api_content: reads the content from the API, where the API omits what events carry.
        optional: columns that payloads may omit, and then `content` does: absent is not null. Each has a version of its
            own (`State.versions`). Ids of parents are among them, because a delete event may lack them.
        derive: the columns that are computed from the content whenever a row is written.
        tie_break: which of two live states to keep if their times are equal: the one that grants less access.
        personal: the columns that erasure blanks.
        stays_erased: whether `personal` stays blank in an object that WorkOS still has after its person was erased.
    """

    name: str
    object: str
    table: type[Mirrored]
    content: ContentReader
    events: Mapping[str, EventReader]
    read_path: Callable[[str], Path] = lambda _id: ()
    listings: tuple[Listing, ...] = ()
    shown_by: tuple[ShownBy, ...] = ()
    label: InstrumentedAttribute[Any] | None = None
    parents: Mapping[str, str] = field(default_factory=dict)
    id_field: str = "id"
    key: Callable[[str, Content], str] = lambda id, _content: id
    delete_is_final: bool = True
    organization_of: Callable[[str, Content], str | None] = lambda _id, content: content.get("organization_id")
    from_read: Callable[[str, JsonObject], JsonObject | None] = lambda _id, item: item
    api_content: ContentReader | None = None
    derive: Callable[[Content], Content] = lambda _content: {}
    tie_break: TieBreak = no_tie_break
    personal: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    stays_erased: bool = False

    def __str__(self) -> str:
        return self.name

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The content columns: those that an incoming version may change."""
        others = {*Mirrored.__annotations__, *self.derive({})}
        names = (str(column.name) for column in self.table.__table__.c)  # SQLAlchemy marks reserved names by a subclass
        return ("created_at", *(name for name in names if name not in others))

    @property
    def is_readable(self) -> bool:
        """Whether WorkOS's API shows such objects, and not only events."""
        return bool(self.read_path(""))

    @property
    def owner(self) -> KeyedColumnElement[str | None] | None:
        """The column with the id of the workspace that owns an object, if workspaces own objects of this kind."""
        return self.table.__table__.c.get("organization_id")


def live(kind: Kind, data: Fields, envelope: Envelope, roles: RoleMap) -> Snapshot:
    """Read a live object; raises `PayloadError` if a required field is missing or unusable."""
    return live_state(kind, data, kind.content(data, roles), envelope)


def live_state(kind: Kind, data: Fields, content: JsonObject, envelope: Envelope) -> Snapshot:
    """Return `content` as a live object with the version of its event; raises as `live`."""
    for column in kind.parents:
        if content.get(column) is None:
            data.id(column)  # required of a live object
    event_at = _event_time(envelope)
    updated_at = data.time("updated_at") if kind.delete_is_final else event_at
    return _snapshot(kind, data, content, Version(updated_at, event_at, envelope.id), deleted=False)


def tombstone(kind: Kind, data: Fields, envelope: Envelope, roles: RoleMap) -> Snapshot:
    """Read a deleted object; raises `PayloadError` if its id is unusable.

    Nothing else is required, so that no delete is lost; except that if the object can be created again, the event's
    time is required to order the two.
    """
    if kind.delete_is_final:
        updated_at, event_at = data.optional_time("updated_at") or EPOCH, envelope.created_at or EPOCH
    else:
        updated_at = event_at = _event_time(envelope)
    version = Version(updated_at, event_at, envelope.id)
    return _snapshot(kind, data, kind.content(data, roles), version, deleted=True)


def _snapshot(kind: Kind, data: Fields, content: JsonObject, version: Version, *, deleted: bool) -> Snapshot:
    content.setdefault("created_at", data.optional_time("created_at") or version.updated_at)
    state = State(
        version,
        deleted,
        dict.fromkeys(kind.optional) | content,
        versions={name: version for name in kind.optional if name in content},
    )
    return Snapshot(kind, kind.key(data.id(kind.id_field), content), state)


def _event_time(envelope: Envelope) -> datetime:
    if envelope.created_at is None:
        raise PayloadError("created_at", "is missing or not a time")
    return envelope.created_at
