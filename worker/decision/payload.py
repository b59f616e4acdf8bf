"""From WorkOS's JSON to states. Lenient: what is not needed may be missing, invalid or new; what is needed is named."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson

from worker.errors import PayloadError

MAX_ID = 255
MAX_TEXT = 10_000
MAX_EMAIL = 320
EPOCH = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, slots=True)
class Envelope:
    """An event without its data. Times are UTC."""

    id: str
    """Empty for an object that was read by the API: no event tells that version."""
    created_at: datetime | None


class Fields:
    """Reads the fields of one JSON object; raises `PayloadError` with the field's path.

    Args:
        value: the JSON value that should be an object.
        path: where it stood, for messages.
    """

    def __init__(self, value: object, path: str) -> None:
        if not isinstance(value, Mapping):
            raise PayloadError(path, "is not an object")
        self._value: Mapping[str, Any] = value
        self._path = path

    def _where(self, name: str) -> str:
        return f"{self._path}.{name}"

    def nested(self, name: str) -> "Fields":
        """Return the object at `name`."""
        return Fields(self._value.get(name), self._where(name))

    def id(self, name: str) -> str:
        """Return a WorkOS id: an opaque string, kept exactly."""
        value = self._value.get(name)
        if not isinstance(value, str) or not value:
            raise PayloadError(self._where(name), "is missing" if value in (None, "") else "is not a string")
        if not is_id(value):
            raise PayloadError(self._where(name), "is not an id")
        return value

    def optional_id(self, name: str) -> str | None:
        """Return a WorkOS id, or None if there is no usable one."""
        value = self._value.get(name)
        return value if isinstance(value, str) and is_id(value) else None

    def id_if_given(self, name: str) -> str | None:
        """Return a WorkOS id, or None if there is none; raises `PayloadError` for one that is unusable."""
        return None if self._value.get(name) is None else self.id(name)

    def parent(self, name: str, *, strict: bool) -> str | None:
        """Return the id of a parent: required if `strict`."""
        return self.id(name) if strict else self.optional_id(name)

    def text(self, name: str) -> str | None:
        """Return text that every database can hold, or None."""
        value = self._value.get(name)
        return clean(value) if isinstance(value, str) else None

    def email(self, name: str) -> str | None:
        """Return an e-mail address, or None. What is longer than any mailbox is none, nor could an index hold it."""
        value = self.text(name)
        return value if value is not None and len(value) <= MAX_EMAIL else None

    def flag(self, name: str) -> bool:
        """Return whether the value is exactly true: anything else grants nothing."""
        return self._value.get(name) is True

    def texts(self, name: str) -> list[str]:
        """Return the strings of a list, sorted, without duplicates; what is no string is left out."""
        value = self._value.get(name)
        return sorted({clean(item) for item in value if isinstance(item, str)}) if isinstance(value, list) else []

    def names(self, name: str, field: str) -> list[str]:
        """Return one field of each object of a list, where it is a string: sorted, without duplicates."""
        value = self._value.get(name)
        found = (item.get(field) for item in value if isinstance(item, Mapping)) if isinstance(value, list) else ()
        return sorted({clean(item) for item in found if isinstance(item, str)})

    def time(self, name: str) -> datetime:
        """Return an instant in UTC. WorkOS writes most with a zone; one without is UTC."""
        value = self._value.get(name)
        if value is None:
            raise PayloadError(self._where(name), "is missing")
        parsed = parse_time(value)
        if parsed is None:
            raise PayloadError(self._where(name), "is not a time")
        return parsed

    def optional_time(self, name: str) -> datetime | None:
        """Return an instant in UTC, or None if there is no usable one."""
        return parse_time(self._value.get(name))

    def slugs(self) -> list[str]:
        """Return all role slugs of a membership, from `role` and `roles`, sorted."""
        one, several = self._value.get("role"), self._value.get("roles")
        found = [one, *(several if isinstance(several, list) else [])]
        slugs = (item.get("slug") if isinstance(item, Mapping) else item for item in found)
        # Longer than an id it is no slug, nor could an index hold it.
        return sorted({clean(slug) for slug in slugs if isinstance(slug, str) and 0 < len(slug) <= MAX_ID})


def parse_json(body: bytes) -> Any:
    """Return the value of a JSON text, as Python's own parser reads it.

    Most texts are read by orjson, which is faster. What it refuses (another encoding, NaN, half a surrogate) is left to
    the other. They differ in integers of more than 64 bits, and a little in how deep a text may be nested.

    Raises:
        ValueError, RecursionError: it is no JSON.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return json.loads(body)


def is_id(value: str) -> bool:
    """Whether `value` can be a key and a segment of a URL's path.

    Printable ASCII, 1 to 255 characters, without `/`, and neither `.` nor `..`, which a URL takes for folders.
    """
    printable = value.isascii() and value.isprintable()
    return 0 < len(value) <= MAX_ID and printable and "/" not in value and value not in (".", "..")


def clean(value: str) -> str:
    """Return `value` as every database can hold it: no NUL, no lone surrogates, at most 10,000 characters."""
    if len(value) <= MAX_TEXT and value.isascii() and value.isprintable():
        return value  # as nearly all are
    return value[:MAX_TEXT].replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def parse_time(value: object) -> datetime | None:
    """Return the instant that ISO 8601 text names, in UTC, or None. Without a zone it is UTC (docs/workos.md)."""
    if not isinstance(value, str):
        return None
    try:
        parsed = datetime.fromisoformat(value)
        return parsed.replace(tzinfo=UTC) if parsed.tzinfo is None else parsed.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
