"""Removes tokens and secrets from the raw bytes of an event before it is stored. Every other byte stays. Pure."""

import json
import re
from collections.abc import Iterator, Mapping

Path = tuple[str | None, ...]
"""The keys that lead to a value. None means every item of a list."""

REMOVED = b'"[removed]"'
_IN_DATA = {
    **dict.fromkeys(
        (f"invitation.{verb}" for verb in ("created", "accepted", "revoked", "resent")),
        ("token", "accept_invitation_url"),
    ),
    **dict.fromkeys(
        ("password_reset.created", "password_reset.succeeded"),
        ("token", "password_reset_token", "password_reset_url"),
    ),
    "magic_auth.created": ("code",),
    "email_verification.created": ("code",),
    "api_key.created": ("value",),
    "dsync.token.created": ("token",),
}
STARTS: tuple[Path, ...] = (("data",), ("context", "previous_attributes"), ("context", "previous_attributes", "data"))
SECRETS: Mapping[str, frozenset[Path]] = {
    type: frozenset((*start, field) for field in fields for start in STARTS) for type, fields in _IN_DATA.items()
}
"""Event type → the paths of its tokens and secrets.

Each of them lets anybody act as a person. WorkOS documents some for the API only; they are listed in case an event has
them. The `verification_token` of a domain is not a secret: the customer publishes it in the DNS.
"""
NAMES = {type: {field.encode() for field in fields} for type, fields in _IN_DATA.items()}

TOKEN = re.compile(r'[ \t\n\r\ufeff]*(?:([{}\[\],:])|("[^"\\]*(?:\\.[^"\\]*)*")|([^\s{}\[\],:"]+))', re.DOTALL)
"""Punctuation, a string, or another scalar of JSON."""


def without_secrets(type: str, body: bytes) -> bytes:
    """Return the body of an event with `"[removed]"` in place of each value that `SECRETS` lists for its type.

    `body` must be JSON, in any encoding that `json.loads` accepts. Null stays, and so does each byte outside of the
    values. If a key occurs more than once, each of its values is removed.
    """
    paths = SECRETS.get(type)
    if paths is None:
        return body
    codec = _codec(body)
    if codec == "utf-8" and b"\\" not in body and not any(name in body for name in NAMES[type]):
        return body  # the common case: without an escape, a key is spelled in one way
    text = body.decode(codec, "surrogatepass")
    kept, last = [], 0
    for start, end in _values_at(text, paths):
        kept.append(text[last:start])
        last = end
    kept.append(text[last:])
    return REMOVED.decode().encode(codec).join(part.encode(codec, "surrogatepass") for part in kept)


def _codec(body: bytes) -> str:
    """Return the encoding of JSON, with its byte order: a byte order mark is then a character like any other."""
    codec = json.detect_encoding(body)
    if codec in ("utf-16", "utf-32"):
        return f"{codec}-{'le' if body[0] == 0xFF else 'be'}"  # noqa: PLR2004 - the first byte of a byte order mark
    return "utf-8" if codec == "utf-8-sig" else codec


def _values_at(text: str, paths: frozenset[Path]) -> Iterator[tuple[int, int]]:
    """Yield where the values at `paths` begin and end in a JSON text, except null. Values inside them are skipped."""
    keys: list[str | None] = []
    """The path to the current value. In an object, the last key is the one read last."""
    opened: list[str] = []
    is_key = False
    inside: int | None = None
    """The depth of a value to remove that is an object or a list."""
    start = 0
    for match in TOKEN.finditer(text):
        mark, string, scalar = match.groups()
        if mark in ("}", "]"):
            opened.pop()
            keys.pop()
            if inside == len(opened):
                inside = None
                yield start, match.end()
        elif mark == ",":
            is_key = opened[-1] == "{"
        elif mark == ":":
            is_key = False
        elif is_key and string is not None:
            keys[-1] = json.loads(string, strict=False) if "\\" in string else string[1:-1]
        else:
            wanted = inside is None and tuple(keys) in paths
            if mark is not None:
                if wanted:
                    start, inside = match.start(1), len(opened)
                opened.append(mark)
                keys.append(None)
                is_key = mark == "{"
            elif wanted and scalar != "null":
                yield match.start(2 if scalar is None else 3), match.end()
