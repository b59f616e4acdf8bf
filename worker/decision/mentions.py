"""Finds the ids and e-mail addresses that a stored payload contains, for erasure. Pure."""

import re
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import unquote

from models.addresses import normalize_address
from worker.decision.payload import parse_json

ID = re.compile(r"[A-Za-z0-9_-]+")
ADDRESS = re.compile(r"[^\s<>()\[\]\\\",;:=&?/|]+@[^\s<>()\[\]\\\",;:=&?/|'!*#%]+")
ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})|\\/")


class Mentions(NamedTuple):
    """What a payload contains.

    Attributes:
        words: a superset of all ids.
        addresses: e-mail addresses, as returned by `comparable`.
        is_json: False if the payload could not be parsed and was searched as text.
    """

    words: frozenset[str]
    addresses: frozenset[str]
    is_json: bool


def comparable(email: str) -> str:
    """Return an e-mail address in the form in which two spellings of one address are equal."""
    address = normalize_address(email)
    return address.normalized if address else email.strip().lower()


def mentions(body: bytes) -> Mentions:
    """Return the words and addresses in a payload, however its JSON is escaped.

    Args:
        body: the raw bytes of an event. Bytes that are not JSON are searched as UTF-8 text.
    """
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
