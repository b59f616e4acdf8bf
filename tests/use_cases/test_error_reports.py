"""With SENTRY_DSN, unexpected errors are reported to Sentry: the place in the code, and no value."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import Engine

from models.tables import Event
from tests.support import accept, made, rows
from tests.support.receiver import Receiver, receiving
from worker import error_reports
from worker.bootstrap import Services
from worker.inbox.drain import Drain, DrainLimits
from worker.kinds import READERS
from worker.metrics import Place

SECRET = "ann@acme.example"


class Sentry:
    """A server that plays Sentry."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self.dsn = f"http://{'k' * 32}@{receiver.place}/1"

    @property
    def bodies(self) -> list[bytes]:
        return [body for _, body in self._receiver.accepted]

    def events(self) -> list[dict[str, Any]]:
        """All events, once this process has sent what it had queued. The third line of an envelope is its event."""
        error_reports.stop()
        return [json.loads(body.splitlines()[2]) for body in self.bodies]


@pytest.fixture
def sentry() -> Iterator[Sentry]:
    with receiving() as receiver:
        yield Sentry(receiver)
        error_reports.stop()


def fail(address: str) -> None:
    try:
        int(address)
    except ValueError as error:
        raise KeyError(f"no {address}") from error


def test_an_error_is_reported_with_its_places_and_without_values(
    sentry: Sentry, build_test_services: Callable[..., Services]
) -> None:
    services = build_test_services(sentry_dsn=sentry.dsn, environment_name="staging")
    with services.counters.contained(Place.TASK, "sweep"):
        fail(SECRET)
    [event] = sentry.events()
    assert [each["type"] for each in event["exception"]["values"]] == ["ValueError", "KeyError"], "the cause first"
    assert event["exception"]["values"][1]["stacktrace"]["frames"][-1]["function"] == "fail"
    assert event["tags"] == {"place": "task", "name": "sweep", "fingerprint": event["fingerprint"][0]}
    assert (event["environment"], event["level"]) == ("staging", "error")
    assert event["release"].startswith("workos-sync@")
    body = sentry.bodies[0].decode()
    assert SECRET not in body and "raise KeyError" not in body


def test_an_event_that_fails_is_reported_once_with_its_id(
    sentry: Sentry,
    build_test_services: Callable[..., Services],
    endpoint: FlaskClient,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kind, _ = READERS["user.updated"]
    monkeypatch.setitem(READERS, "user.updated", (kind, lambda *_: fail(SECRET)))
    build_test_services(sentry_dsn=sentry.dsn)
    accept(endpoint, bad := made("user.updated"))
    drain = Drain(engine, DrainLimits(first_backoff=0.0))
    assert drain() and drain()
    [event] = sentry.events()
    assert event["tags"]["event_id"] == bad["id"] and SECRET not in sentry.bodies[0].decode()
    [stored] = rows(engine, Event)
    assert event["fingerprint"] == [stored["fingerprint"]], "it has the group that operators see"


def test_nothing_is_reported_without_a_dsn(sentry: Sentry, build_test_services: Callable[..., Services]) -> None:
    with build_test_services().counters.contained(Place.TASK, "sweep"):
        fail(SECRET)
    assert sentry.events() == []
