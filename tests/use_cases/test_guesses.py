"""Guesses of tokens are slowed for each address, at sign-in and in the API."""

from collections.abc import Callable
from typing import Any

import pytest
from flask.testing import FlaskClient
from freezegun import freeze_time
from redis import Redis
from werkzeug.test import TestResponse

from tests.support.ops import TOKEN, form_token
from webhooks.app import create_app
from webhooks.auth import MAX_GUESSES, MAX_REFUSED, Guesses
from worker.bootstrap import Services
from worker.errors import TooManyGuessesError

READER = "a-token-that-only-reads"
AWAY = "redis://127.0.0.1:1/0"
Send = Callable[..., TestResponse]


@pytest.fixture
def services(local: Callable[..., Services]) -> Services:
    return local(ops_tokens=f"ann:{TOKEN}", api_tokens=READER)


def ask_api(endpoint: FlaskClient, token: str, address: str = "192.0.2.1") -> TestResponse:
    """Send a token to the API."""
    headers = {"Authorization": f"Bearer {token}"}
    return endpoint.get("/api/v1/workspaces", headers=headers, environ_base={"REMOTE_ADDR": address})


def sign_in(endpoint: FlaskClient, token: str, address: str = "192.0.2.1") -> TestResponse:
    """Send a token to the form."""
    form = {"token": token, "csrf_token": form_token(endpoint.get("/ops/sign-in"))}
    return endpoint.post("/ops/sign-in", data=form, environ_base={"REMOTE_ADDR": address})


WAYS = [pytest.param(ask_api, READER, 200, id="api"), pytest.param(sign_in, TOKEN, 302, id="sign-in")]


@pytest.mark.long
@pytest.mark.parametrize(("send", "right", "code"), WAYS)
def test_guesses_are_refused_after_ten_in_a_minute(services: Services, send: Send, right: str, code: int) -> None:
    with freeze_time("2026-03-01 12:00:10") as clock:
        endpoint = create_app(services).test_client()
        codes = [send(endpoint, f"guess-{number}").status_code for number in range(200)]
        assert codes == [401] * MAX_GUESSES + [429] * (200 - MAX_GUESSES)
        refused = send(endpoint, right)
        assert refused.status_code == 429 and "try again in" in refused.get_data(as_text=True)
        assert 45 <= int(refused.headers["Retry-After"]) <= 51
        assert send(endpoint, right, "192.0.2.2").status_code == code, "another address"
        clock.tick(51)
        assert send(endpoint, right).status_code == code


@pytest.mark.long
@pytest.mark.parametrize(("send", "right", "code"), WAYS)
def test_processes_share_the_count(services: Services, send: Send, right: str, code: int) -> None:
    with freeze_time("2026-03-01 12:00:10"):
        processes = [create_app(services).test_client() for _ in range(4)]
        codes = [send(processes[number % 4], f"guess-{number}").status_code for number in range(100)]
        assert codes.count(401) <= MAX_GUESSES + 3
        assert [send(process, right).status_code for process in processes] == [429] * 4


@pytest.mark.parametrize(("send", "right", "code"), WAYS)
def test_one_wrong_token_sent_often_refuses_nobody(services: Services, send: Send, right: str, code: int) -> None:
    endpoint = create_app(services).test_client()
    assert {send(endpoint, "an-outdated-token").status_code for _ in range(50)} == {401}
    assert send(endpoint, right).status_code == code


@pytest.mark.parametrize(("send", "right", "code"), WAYS)
def test_without_redis_right_tokens_work_and_wrong_ones_do_not(
    local: Callable[..., Services], send: Send, right: str, code: int
) -> None:
    away = local(ops_tokens=f"ann:{TOKEN}", api_tokens=READER, redis_url=AWAY)
    endpoint = create_app(away).test_client()
    assert {send(endpoint, f"guess-{number}").status_code for number in range(20)} == {401}
    assert send(endpoint, right).status_code == code


def test_right_tokens_ask_redis_nothing(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Redis, "pipeline", lambda *_, **__: pytest.fail("asked Redis"))
    assert Guesses(services.redis).name_of(READER, services.settings.api_tokens, "192.0.2.1") == "token"


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        (None, "", True),
        ("not an address", None, True),
    ],
)
def test_addresses_of_one_sender_count_together(
    redis: Redis, first: str | None, second: str | None, same: bool
) -> None:
    with freeze_time("2026-03-01 12:00:10"):
        guesses = Guesses(redis)
        for number in range(MAX_GUESSES):
            assert guesses.name_of(f"guess-{number}", {}, first) is None
        if same:
            with pytest.raises(TooManyGuessesError):
                guesses.name_of("guess", {}, second)
        else:
            assert guesses.name_of("guess", {}, second) is None


def test_counts_expire_and_memory_is_bounded(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    guesses = Guesses(redis)
    for number in range(MAX_GUESSES):
        guesses.name_of(f"guess-{number}", {}, "192.0.2.1")
    (key,) = redis.keys("workos-sync:guesses:*")
    assert 0 < redis.ttl(key) <= 120
    counted = redis.smembers(key)
    assert counted and not any("guess-" in str(member) for member in counted)
    monkeypatch.setattr("webhooks.auth.MAX_REFUSED", 3)
    for last in range(2, 9):
        for number in range(MAX_GUESSES):
            guesses.name_of(f"guess-{number}", {}, f"192.0.2.{last}")
    assert len(guesses._refused) == 3 < MAX_REFUSED


def test_refusal_is_logged_once_without_the_token(services: Services, logs: list[Any]) -> None:
    with freeze_time("2026-03-01 12:00:10"):
        endpoint = create_app(services).test_client()
        for number in range(50):
            ask_api(endpoint, f"guess-{number}")
    lines = [line for line in logs if line["event"] == "guesses_refused"]
    assert [line["address"] for line in lines] == ["192.0.2.1"] and "guess-" not in str(lines)
