"""Mentions of a person are found in a payload in every notation of their id or address."""

import json

import pytest

from models.addresses import comparable
from worker.decision.mentions import mentions

ANN = comparable("Ann@Acme.example")
CID = comparable("cid@bücher.example")


@pytest.mark.parametrize(
    "body",
    [
        b'{"email": "ann@acme.example"}',
        b'{"email": "ANN@acme.EXAMPLE"}',
        rb'{"email": "ann\u0040acme.example"}',
        rb'{"email": "\u0061nn@acme.example"}',
        b'{"a": [{"b": [["ann@acme.example"]]}]}',
        b'{"ann@acme.example": 1}',
        b'[{"email": "ann@acme.example"}, {"a": 1}, ["b"]]',
        rb'{"text": "x\/ann@acme.example"',
        b'{"text": "Ann <ann@acme.example>, Bob <bob@acme.example>"}',
        b'{"text": "Write to ann@acme.example."}',
        rb'{"url": "https:\/\/x.example\/?to=ann@acme.example&x=1"}',
        b'{"url": "https://x.example/?to=ann%40acme.example#x"}',
        b'{"url": "mailto:ann@acme.example"}',
        '{"email": "ann@acme.example"}'.encode("utf-16"),
        b'{"email": "ann@acme.example"',
        rb'{"email": "ann\u0040acme.example"',
        b"[" * 100_000 + b'"ann@acme.example"',
    ],
)
def test_an_address_is_found_in_every_notation(body: bytes) -> None:
    assert ANN in mentions(body).addresses


@pytest.mark.parametrize("email", ["cid@bücher.example", "Cid@BÜCHER.example.", "cid@xn--bcher-kva.example"])
@pytest.mark.parametrize("escaped", [True, False])
def test_an_international_domain_is_found_in_every_notation(email: str, escaped: bool) -> None:
    assert CID in mentions(json.dumps({"x": [email]}, ensure_ascii=escaped).encode()).addresses


@pytest.mark.parametrize("email", ["ann@localhost", '"a b"@acme.example', "o'hara/x@acme.example"])
def test_unusual_addresses_are_found(email: str) -> None:
    assert comparable(email) in mentions(json.dumps({"email": email}).encode()).addresses


@pytest.mark.parametrize(
    "text", ["jo-ann@acme.example", "ann@acme.example.org", "ann@acme.examples", "ann.acme.example", "ann"]
)
def test_similar_addresses_do_not_match(text: str) -> None:
    found = mentions(json.dumps({"a": text, "b": f"Write to {text} today"}).encode())
    assert ANN not in found.addresses


def test_only_whole_ids_match() -> None:
    found = mentions(b'{"id": "user_1", "text": "by user_2, urn:user_3", "odd": "no.id of ours", "user_4": null}')
    assert {"user_1", "user_2", "user_3", "user_4", "no.id of ours"} <= found.words
    assert "user_1" not in mentions(b'{"id": "user_10", "by": "x-user_1"}').words


def test_invalid_json_is_reported_and_searched() -> None:
    assert not mentions(b'{"id": "user_1').is_json and mentions(b'{"id": "user_1"}').is_json
    assert "user_1" in mentions(b'{"id": "user_1').words
    assert "user_1" in mentions(b'{"name": "\xff", "id": "user_1').words, "not UTF-8 either"
