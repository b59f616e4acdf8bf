"""Finds the ids and e-mail addresses that a stored payload contains, for erasure. Pure."""

import re
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import unquote

from models.addresses import comparable
from worker.decision.payload import parse_json

ID = re.compile(r"[A-Za-z0-9_-]+")
ADDRESS = re.compile(r"[^\s<>()\[\]\\\",;:=&?/|]+@[^\s<>()\[\]\\\",;:=&?/|'!*#%]+")
ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})|\\/")


class Mentions(NamedTuple):
    """The ids and addresses in a payload."""

    words: frozenset[str]
    """A superset of all ids."""
    addresses: frozenset[str]
    """As returned by `models.addresses.comparable`."""
    is_json: bool
    """False if the payload could not be parsed and was searched as text."""


def mentions(body: bytes) -> Mentions:
    """Return the words and addresses in the raw bytes of an event, however its JSON is escaped."""
    try:
        texts, is_json = set(_texts(parse_json(body))), True
    except (ValueError, RecursionError):
        texts, is_json = {ESCAPE.sub(_unescaped, body.decode("utf-8", "replace"))}, False
    words = texts.union(*map(ID.findall, texts))
    return Mentions(frozenset(words), frozenset(found for text in texts for found in _addresses(text)), is_json)


def _texts(value: object) -> Iterator[str]:
    """Yield every string in a JSON value, field names included, at any depth."""
    stack = [value]
    while stack:
        match stack.pop():
            case str(text):
                yield text
            case dict(fields):
                stack += [*fields, *fields.values()]
            case list(items):
                stack += items


def _addresses(text: str) -> Iterator[str]:
    for spelled in {text, unquote(text)} if "%" in text else (text,):
        if "@" in spelled:
            yield comparable(spelled)
            yield from map(comparable, ADDRESS.findall(spelled))


def _unescaped(escape: re.Match[str]) -> str:
    return chr(int(escape[1], 16)) if escape[1] else "/"
