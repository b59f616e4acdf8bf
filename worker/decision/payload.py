"""Reads WorkOS's JSON leniently: optional fields may be missing or invalid; an error names the required field."""

import json
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

import orjson

from worker.errors import PayloadError

MAX_ID_LENGTH = 255
MAX_TEXT = 10_000
MAX_EMAIL = 320
MAX_DEPTH = 20
"""Nesting of stored JSON."""
MAX_OBJECT_BYTES = 150_000
"""Of a stored JSON object. WorkOS's limits for `metadata`, 50 keys of 40 characters with values of 600, allow less."""
EPOCH = datetime.fromtimestamp(0, UTC)


class Origin(NamedTuple):
    """The actor of a change at WorkOS, and the values before it, from the `context` of an event. None: absent."""

    actor_id: str | None = None
    actor_name: str | None = None
    actor_source: str | None = None
    previous_attributes: dict[str, Any] | None = None


class Envelope(NamedTuple):
    """An event without its data. Times are in UTC."""

    id: str
    """Empty for an object that was read from the API."""
    created_at: datetime | None
    origin: Origin = Origin()


class Fields:
    """Reads the fields of the JSON object `value`. Errors are `PayloadError`; `path` is the object's path in them."""

    def __init__(self, value: object, path: str) -> None:
        if not isinstance(value, Mapping):
            raise PayloadError(path, "is not an object")
        self._value: Mapping[str, object] = value
        self._path = path

    def _where(self, name: str) -> str:
        return f"{self._path}.{name}"

    def nested(self, name: str) -> "Fields":
        """Return the object at `name`."""
        return Fields(self._value.get(name), self._where(name))

    def id(self, name: str) -> str:
        """Return a required WorkOS id, unchanged."""
        value = self._value.get(name)
        if not isinstance(value, str) or not value:
            raise PayloadError(self._where(name), "is missing" if value in (None, "") else "is not a string")
        if not is_id(value):
            raise PayloadError(self._where(name), "is not an id")
        return value

    def optional_id(self, name: str) -> str | None:
        """Return a WorkOS id, or None if it is missing or unusable."""
        value = self._value.get(name)
        return value if isinstance(value, str) and is_id(value) else None

    def id_if_given(self, name: str) -> str | None:
        """Return a WorkOS id, or None if it is missing; an unusable one is an error."""
        return None if self._value.get(name) is None else self.id(name)

    def ids(self, *names: str) -> dict[str, Any]:
        """Return those of the fields that contain a usable WorkOS id. Null counts as absent."""
        return {name: id for name in names if (id := self.optional_id(name)) is not None}

    def text(self, name: str) -> str | None:
        """Return text as `clean` does, or None."""
        value = self._value.get(name)
        return clean(value) if isinstance(value, str) else None

    def email(self, name: str) -> str | None:
        """Return an e-mail address, or None. Text longer than any mailbox is ignored: an index could not hold it."""
        value = self.text(name)
        return value if value is not None and len(value) <= MAX_EMAIL else None

    def flag(self, name: str) -> bool:
        """Return whether the value is exactly true: anything else grants nothing."""
        return self._value.get(name) is True

    def json(self, name: str) -> dict[str, Any] | None:
        """Return a JSON object as `storable` does, or None if it is empty, unusable, or larger than any of WorkOS's."""
        value = self._value.get(name)
        kept = storable(value) if isinstance(value, Mapping) else None
        return kept if kept and len(orjson.dumps(kept)) <= MAX_OBJECT_BYTES else None

    def given(self, **columns: Callable[[str], object]) -> dict[str, Any]:
        """Return the fields that are present, each read by its function. Absent is not null."""
        return {name: read(name) for name, read in columns.items() if name in self._value}

    def texts(self, name: str, field: str | None = None) -> list[str]:
        """Return the strings in a list, or in one field of its objects: sorted, without duplicates."""
        items = self._list(name)
        if field is not None:
            items = [item.get(field) for item in items if isinstance(item, Mapping)]
        return sorted({clean(item) for item in items if isinstance(item, str)})

    def slugs(self) -> list[str]:
        """Return all role slugs of a membership, from `role` and `roles`, sorted."""
        roles = [self._value.get("role"), *self._list("roles")]
        slugs = (role.get("slug") if isinstance(role, Mapping) else role for role in roles)
        # A longer text is not a slug, and an index could not hold it.
        return sorted({clean(slug) for slug in slugs if isinstance(slug, str) and 0 < len(slug) <= MAX_ID_LENGTH})

    def _list(self, name: str) -> list[object]:
        value = self._value.get(name)
        return value if isinstance(value, list) else []

    def time(self, name: str) -> datetime:
        """Return a required instant in UTC."""
        if self._value.get(name) is None:
            raise PayloadError(self._where(name), "is missing")
        if (parsed := self.optional_time(name)) is None:
            raise PayloadError(self._where(name), "is not a time")
        return parsed

    def optional_time(self, name: str) -> datetime | None:
        """Return an instant in UTC, or None if it is missing or unusable."""
        return parse_time(self._value.get(name))


def read_origin(context: object) -> Origin:
    """Return the origin in the `context` of an event. A missing or unusable field is None."""
    if not isinstance(context, Mapping):
        return Origin()
    given = context.get("actor")
    actor = Fields(given if isinstance(given, Mapping) else {}, "context.actor")
    previous = context.get("previous_attributes")
    kept = storable(previous) if isinstance(previous, Mapping) else None
    return Origin(actor.optional_id("id"), actor.text("name"), actor.text("source"), kept)


def storable(value: object, depth: int = MAX_DEPTH) -> Any:
    """Return a JSON value that every database can store.

    Numbers that are not finite or have more than 64 bits, and values nested deeper than `depth`, become None.
    """
    result: Any = None
    match value:
        case bool():
            result = value
        case str():
            result = clean(value)
        case int() if -(2**63) <= value < 2**63:
            result = value
        case float() if math.isfinite(value):
            result = value
        case list() if depth:
            result = [storable(item, depth - 1) for item in value]
        case dict() if depth:
            result = {clean(key): storable(item, depth - 1) for key, item in value.items()}
    return result


def parse_json(body: bytes) -> Any:
    """Return the value of a JSON text; raises `ValueError` or `RecursionError` if it is not JSON.

    orjson is faster but refuses some texts that the standard library accepts: another encoding, NaN, lone surrogates.
    The two differ in integers of more than 64 bits, and a little in how deep a text may be nested.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return json.loads(body)


def is_id(value: str) -> bool:
    """Return whether `value` can be a key and a segment of a URL's path.

    It must be printable ASCII, 1 to 255 characters, without `/`, and neither `.` nor `..`, which URLs treat as folders.
    """
    printable = value.isascii() and value.isprintable()
    return 0 < len(value) <= MAX_ID_LENGTH and printable and "/" not in value and value not in (".", "..")


def clean(value: str) -> str:
    """Return `value` so that every database can store it: no NUL, no lone surrogates, at most 10,000 characters."""
    if len(value) <= MAX_TEXT and value.isascii() and value.isprintable():
        return value  # the common case, without the cost of encoding
    return value[:MAX_TEXT].replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def parse_time(value: object) -> datetime | None:
    """Return the instant of an ISO 8601 text in UTC, or None. Text without a zone is in UTC (docs/workos.md)."""
    if not isinstance(value, str):
        return None
    try:
        parsed = datetime.fromisoformat(value)
        return parsed.replace(tzinfo=UTC) if parsed.tzinfo is None else parsed.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
