"""Which people a stored payload mentions: the ids and the e-mail addresses in it. Pure."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import unquote

from models.access import normalize_address
from worker.decision.payload import parse_json

ID = re.compile(r"[A-Za-z0-9_-]+")
ADDRESS = re.compile(r"[^\s<>()\[\]\\\",;:=&?/|]+@[^\s<>()\[\]\\\",;:=&?/|'!*#%]+")
ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})|\\/")


class Mentions(NamedTuple):
    """What a payload mentions: `words`, among them every id, and `addresses`, as `comparable` returns them."""

    words: frozenset[str]
    addresses: frozenset[str]
    is_json: bool
    """False if the payload could not be parsed and was searched as text."""


def comparable(email: str) -> str:
    """Return an e-mail address as it is compared: two spellings of one address give the same text."""
    address = normalize_address(email)
    return address.normalized if address else email.strip().lower()


def mentions(body: bytes) -> Mentions:
    """Return what a payload mentions, in whatever way its JSON is escaped.

    Args:
        body: the raw bytes of an event. Bytes that are no JSON are searched as UTF-8 text.
    """
    try:
        texts, is_json = set(_texts(parse_json(body))), True
    except (ValueError, RecursionError):
        texts, is_json = {ESCAPE.sub(_unescaped, body.decode("utf-8", "replace"))}, False
    words = texts.union(*map(ID.findall, texts))
    return Mentions(frozenset(words), frozenset(found for text in texts for found in _addresses(text)), is_json)


def _texts(value: Any) -> Iterator[str]:
    """Yield every string of a JSON value, names of fields included, however deep it is nested."""
    left = [value]
    while left:
        match left.pop():
            case str(text):
                yield text
            case dict(fields):
                left += [*fields, *fields.values()]
            case list(items):
                left += items


def _addresses(text: str) -> Iterator[str]:
    for spelled in {text, unquote(text)} if "%" in text else (text,):
        if "@" in spelled:
            yield comparable(spelled)
            yield from map(comparable, ADDRESS.findall(spelled))


def _unescaped(escape: re.Match[str]) -> str:
    return chr(int(escape[1], 16)) if escape[1] else "/"
