"""Payloads are stored as JSON that every database accepts, with the actor of the change."""

import json
import math
from typing import Any

import orjson
import pytest

from tests.support import made
from tests.support.snapshots import ROLES, content
from worker.decision.payload import MAX_DEPTH, MAX_OBJECT_BYTES, MAX_TEXT, Fields, Origin, read_origin, storable
from worker.errors import PayloadError
from worker.kinds import LISTINGS, read_event
from worker.kinds.invitation import INVITATION

ACTOR = {"id": "user_1", "name": "Ann", "source": "dashboard"}


@pytest.mark.parametrize("value", [None, True, False, 0, -(2**63), 2**63 - 1, 1.5, "text", [], {}, [1, {"a": [None]}]])
def test_storable_values_are_kept(value: object) -> None:
    kept = storable(value)
    assert kept == value and type(kept) is type(value)


@pytest.mark.parametrize("value", [-(2**63) - 1, 2**63, 10**30, math.inf, -math.inf, math.nan, object()])
def test_other_values_become_null(value: object) -> None:
    assert storable({"a": [value, 1]}) == {"a": [None, 1]}


def test_texts_and_names_are_cleaned() -> None:
    assert storable({"a\0": "b\ud800", "long": "x" * (MAX_TEXT + 1)}) == {"a\ufffd": "b?", "long": "x" * MAX_TEXT}


@pytest.mark.parametrize("wrap", [lambda value: [value], lambda value: {"a": value}], ids=["list", "object"])
def test_values_nested_too_deeply_become_null(wrap: Any) -> None:
    def nested(depth: int, value: object) -> object:
        return wrap(nested(depth - 1, value)) if depth else value

    assert storable(nested(MAX_DEPTH, 1)) == nested(MAX_DEPTH, 1)
    assert storable(nested(MAX_DEPTH + 1, 1)) == nested(MAX_DEPTH, None)


def test_an_object_that_is_too_large_is_not_kept() -> None:
    def metadata(size: int) -> dict[str, object]:
        """An object whose JSON has that many bytes, in texts that are kept whole."""
        found: dict[str, object] = {"many": ["x" * 9_000] * 16, "end": ""}
        return found | {"end": "x" * (size - len(orjson.dumps(found)))}

    fields = [Fields({"metadata": metadata(size)}, "user") for size in (MAX_OBJECT_BYTES, MAX_OBJECT_BYTES + 1)]
    assert [bool(each.json("metadata")) for each in fields] == [True, False]


def test_the_actor_and_the_values_before_the_change_are_read() -> None:
    event = made("user.updated") | {"context": {"actor": ACTOR, "previous_attributes": {"email": "old@acme.example"}}}
    envelope, _ = read_event("event_1", "user.updated", json.dumps(event).encode(), ROLES)
    assert envelope.origin == Origin("user_1", "Ann", "dashboard", {"email": "old@acme.example"})


@pytest.mark.parametrize("context", [None, "x", [], {}, {"actor": None}, {"actor": "ann", "previous_attributes": []}])
def test_an_unusable_context_says_nothing(context: object) -> None:
    assert read_origin(context) == Origin()


def test_an_invitation_without_an_expiry_keeps_its_status() -> None:
    at = "2026-01-31T12:00:00Z"
    shown = [content("invitation.created", state="expired", expires_at=time)["status"] for time in (at, None)]
    assert shown == ["pending", "expired"], "the views compare the time"
    revoked = content("invitation.revoked", state="revoked", revoked_at=at)
    assert (revoked["status"], revoked["revoked_at"].isoformat()) == ("revoked", "2026-01-31T12:00:00+00:00")


def test_the_address_of_an_invitation_is_compared_in_one_spelling() -> None:
    assert INVITATION.derive({"email": "Ann@ACME.example"}) == {"email_normalized": "ann@acme.example"}
    assert INVITATION.derive({"email": "ann"}) == {"email_normalized": None}


def test_domains_that_are_not_a_list_are_named_in_the_error() -> None:
    _, listing = LISTINGS["organizations"]
    assert listing.objects is not None
    with pytest.raises(PayloadError, match=r"^organization\.domains: is not a list$"):
        list(listing.objects({"id": "org_1", "domains": "acme.example"}, ""))
