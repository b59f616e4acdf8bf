"""Correctly signed bodies of a broken or hostile sender: any field, event, bytes and headers."""

import itertools
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from hypothesis import strategies as st

from tests.support import EVENTS, JSON, sample

TYPES = sorted(path.stem for path in EVENTS.glob("*.json"))
CANARIES = ("canary-mail", "Canaria", "canary-secret")
PERSONAL = {
    "email": "canary-mail@private.example",
    "first_name": "Canaria",
    "last_name": "Canaria",
    "name": "Canaria",
    "domain": "canary-mail.example",
}
HOLE = "@@hole@@"
NUMBERS = [
    *("0", "-1", "1.5", "1e999", "-1e999", "NaN", "Infinity", "-0"),
    "9" * 4300,
    "9" * 5000,
    str(2**63),
    str(-(2**64)),
]
TEXTS = [
    *("", " ", "\0", "a\0b", "\ud800", "\udfff\ud800", "\r\nlevel=error", "\x1b[31mred", "\u202egnirts", "é", "𐀀"),
    *("null", "true", "{}", "<script>alert(1)</script>", "' OR 1=1 --", "%", "org_1/../org_2", "a" * 255, "a" * 256),
    *("admin", "active", "verified", "canary-secret \u00e9@private.example"),
]
TIMES = [
    *("0000-01-01T00:00:00Z", "0001-01-01T00:00:00Z", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59.999999Z"),
    *("9999-12-31T23:59:59-23:59", "10000-01-01T00:00:00Z", "-0001-01-01T00:00:00Z", "2025-02-30T00:00:00Z"),
    *("2025-07-01T24:00:00Z", "2025-07-01T00:00:60Z", "2025-07-01T00:00:00.123456789Z", "2025-W27-2", "20250701"),
    *("1751328000", "2025-07-01 00:00:00.093", "2025-07-01T00:00:00+99:99"),
]
DEEP = ["[" * depth + "]" * depth for depth in (100, 200, 300, 700, 900, 950, 990, 100_000)]
DEEP += ['{"a":' * depth + "1" + "}" * depth for depth in (250, 850)]

values = st.one_of(
    st.sampled_from(
        ["null", "true", "false", "[]", "{}", "[null]", "[[],{}]", '{"slug": null}', '[{"slug": "\\ud800"}]']
    ),
    st.sampled_from(NUMBERS),
    st.sampled_from(TEXTS + TIMES).map(json.dumps),
    st.sampled_from(DEEP),
    st.just(json.dumps("long " * 200_000)),
    st.text(st.characters(), max_size=20).map(json.dumps),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=6,
    ).map(json.dumps),
)
"""Any value, as JSON or almost JSON."""

_numbers = itertools.count()


SHOWN = 2_000
"""Bytes of a body that are shown."""


class Posted(NamedTuple):
    """A body to post, and the headers to post it with besides the signature."""

    body: bytes
    headers: dict[str, str]

    def __repr__(self) -> str:
        """Without the middle of a long body, of whose length Hypothesis would warn."""
        body = self.body if len(self.body) <= SHOWN else self.body[: SHOWN // 2] + b" ... " + self.body[-SHOWN // 2 :]
        return f"Posted({body!r} of {len(self.body)} bytes, {self.headers})"


def paths(value: Any, *path: Any) -> Iterator[tuple[Any, ...]]:
    """The path of every field of an event."""
    found = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in found:
        yield (*path, name)
        yield from paths(inner, *path, name)


def event_of(type: str) -> JSON:
    """A valid event with a new id, and canaries in its personal fields."""
    event = sample(type) | {"id": f"event_bad_{next(_numbers):07d}"}
    for path in list(paths(event["data"])):
        if path[-1] in PERSONAL and isinstance(at(event["data"], path[:-1]), dict):
            at(event["data"], path[:-1])[path[-1]] = PERSONAL[path[-1]]
    return event


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for name in path:
        value = value[name]
    return value


def with_field(event: JSON, path: tuple[Any, ...], said: str | None) -> str:
    """The event as JSON text, with the raw text `said` at `path`; None omits the field."""
    holder = at(event, path[:-1])
    if said is None:
        del holder[path[-1]]
        return json.dumps(event)
    holder[path[-1]] = HOLE
    return json.dumps(event).replace(json.dumps(HOLE), said)


@st.composite
def events(draw: st.DrawFn) -> JSON:
    return event_of(draw(st.sampled_from(TYPES)))


@st.composite
def odd_fields(draw: st.DrawFn) -> bytes:
    """An event with one invalid field."""
    event = draw(events())
    path = draw(st.sampled_from(sorted(paths(event), key=str)))
    said = draw(st.none() | values)
    return with_field(event, path, said).encode()


@st.composite
def doubled_fields(draw: st.DrawFn) -> bytes:
    """An event with a duplicate field."""
    event = draw(events())
    name, said = draw(st.sampled_from(["id", "event", "data", "created_at", "email"])), draw(values)
    text = json.dumps(event)
    return draw(st.sampled_from([f'{text[:-1]}, "{name}": {said}}}', f'{{"{name}": {said}, {text[1:]}'])).encode()


@st.composite
def odd_bytes(draw: st.DrawFn) -> bytes:
    """The bytes of an event that are not plain UTF-8 JSON, or only just."""
    text = json.dumps(draw(events()))
    body = text.encode()
    cut = draw(st.integers(0, len(body)))
    return draw(
        st.sampled_from(
            [
                *(text.encode(coding) for coding in ("utf-8-sig", "utf-16", "utf-16-le", "utf-32", "utf-32-be")),
                *(body[:cut], body + body, body + b"\0", b"\0" + body, b" " * 1000 + body, b"\xff" + body),
                *(
                    body[:cut] + odd + body[cut:]
                    for odd in (b"\xff", b"\xc3", b"\xed\xa0\x80", b"\0", b"\x1b[2J", b"//")
                ),
                *(b"[" + body + b"]", b'"' + body, b"", b"null", b"[]", b"1", b"1" * 5000, b"[" * 100_000, b"{}" * 10),
            ]
        )
    )


headers = st.dictionaries(
    st.sampled_from(
        ["User-Agent", "Content-Type", "Content-Encoding", "X-Forwarded-For", "Accept", "Cookie", "X-Request-Id"]
    ),
    st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=30)
    | st.sampled_from(["multipart/form-data", "application/x-www-form-urlencoded", "gzip", "a" * 5000, "\x1b[31m"]),
    max_size=2,
)
posts = st.builds(
    Posted, odd_fields() | odd_fields() | doubled_fields() | odd_bytes() | st.binary(max_size=200), headers
)
