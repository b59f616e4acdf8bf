"""Tokens and secrets are removed from a payload, and no other byte of it changes."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import sample
from worker.decision.payload import parse_json
from worker.decision.payload_secrets import SECRETS, Path, without_secrets
from worker.kinds import SUBSCRIBED

TYPE = "invitation.created"
KEYS = ["data", "token", "accept_invitation_url", "context", "previous_attributes", "tok\u00e9n"]


class Pairs(list[tuple[str, Any]]):
    """A JSON object as pairs: a key may occur more than once."""


def objects_of(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Pairs]:
    return st.lists(st.tuples(st.sampled_from(KEYS), inner), max_size=4).map(Pairs)


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | objects_of(inner), max_leaves=20)
objects = objects_of(values)
codecs = st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32", "utf-32-le"])


def invitation(data: Any) -> Pairs:
    """An event that has its data three times."""
    return Pairs([("data", Pairs([("token", data), *data])), ("data", data), ("context", Pairs([("data", data)]))])


Pieces = list[tuple[str, bool]]
"""Parts of a JSON text, and whether each is a value to remove."""


def write(value: Any, path: Path, draw: st.DrawFn) -> Pieces:
    """Write JSON with any spaces and escapes."""
    space = draw(st.sampled_from(["", "", " ", "\n\t "]))
    if path in SECRETS[TYPE] and value is not None:
        return [(space, False), ("".join(text for text, _ in write(value, (), draw)).strip(), True), (space, False)]
    pieces: Pieces = [(space, False)]
    if isinstance(value, list):
        pieces.append(("{" if isinstance(value, Pairs) else "[", False))
        for place, item in enumerate(value):
            pieces += [(",", False)] if place else []
            if isinstance(value, Pairs):
                key, inner = item
                pieces += [(spelled(key, draw), False), (f"{space}:", False), *write(inner, (*path, key), draw)]
            else:
                pieces += write(item, (*path, None), draw)
        pieces.append(("}" if isinstance(value, Pairs) else "]", False))
    else:
        pieces.append((spelled(value, draw) if isinstance(value, str) else json.dumps(value), False))
    return [*pieces, (space, False)]


def spelled(text: str, draw: st.DrawFn) -> str:
    """A string in JSON: as it is, or with every character escaped."""
    if draw(st.booleans()):
        return json.dumps(text, ensure_ascii=draw(st.booleans()))
    units = text.encode("utf-16-be", "surrogatepass")
    return '"' + "".join(f"\\u{units[place : place + 2].hex()}" for place in range(0, len(units), 2)) + '"'


@st.composite
def bodies(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """The body of an event, and what is left of it without secrets."""
    value = draw(values | objects.map(invitation))
    pieces, codec = write(value, (), draw), draw(codecs)
    body, left = ("".join(part) for part in zip(*((t, '"[removed]"' if s else t) for t, s in pieces), strict=True))
    return body.encode(codec, "surrogatepass"), left.encode(codec, "surrogatepass")


@pytest.mark.long
@given(bodies())
@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
def test_only_the_listed_values_are_replaced(bodies: tuple[bytes, bytes]) -> None:
    body, left = bodies
    assert without_secrets(TYPE, body) == left
    assert without_secrets(TYPE, left) == left
    assert without_secrets("user.updated", body) == body


@given(values)
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_rest_of_the_body_is_the_same_json(value: Any) -> None:
    text = json.dumps(value)
    body = json.dumps({"data": {"a": text, "token": text, "b": text}}).encode()
    assert parse_json(without_secrets(TYPE, body)) == {"data": {"a": text, "token": "[removed]", "b": text}}


def test_each_secret_of_an_invitation_is_removed_wherever_the_event_has_it() -> None:
    secret = {"token": "s3cret", "accept_invitation_url": "https://x.example/?t=s3cret"}
    event = sample("invitation.created")
    event["data"] |= secret
    event["context"] |= {"previous_attributes": {**secret, "data": secret, "email": "a@b.example"}}
    body = without_secrets("invitation.created", json.dumps(event).encode())
    assert b"s3cret" not in body and body.count(b"[removed]") == 6
    assert json.loads(body)["context"]["previous_attributes"]["email"] == "a@b.example"


@pytest.mark.parametrize("type", SUBSCRIBED)
def test_a_recorded_payload_without_secrets_stays_as_it_is(type: str) -> None:
    body = json.dumps(sample(type), indent=3).encode()
    assert without_secrets(type, body) == body
