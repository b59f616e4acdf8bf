"""Correctly signed but bad bodies cause no 500, block no other event and leave no personal data in the logs. The pages
can show all of them.

`BAD_INPUT_EXAMPLES=3000 pytest tests/use_cases/test_bad_input.py` for a long run.
"""

import io
import json
import logging
import os
import re
import sys
from collections.abc import Callable
from typing import Any

import pytest
import structlog
from click.testing import CliRunner
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, select
from structlog.typing import EventDict

from models.database import read_transaction
from models.tables import Batch, Event, EventStatus
from tests.support import SECRET, apply_all, made, outcomes, post, rows
from tests.support.bad_input import CANARIES, DEEP, TEXTS, Posted, event_of, posts, with_field
from tests.support.ops import TOKEN, sign_in
from webhooks.app import create_app
from worker.bootstrap import Services
from worker.cli import main
from worker.inbox.drain import DrainLimits
from worker.logs import configure

EXAMPLES = int(os.environ.get("BAD_INPUT_EXAMPLES", "20"))
FAILED_FOR_ITS_PAYLOAD = re.compile(r"(body|data|created_at)[\w.]*: is ")
QUIET = "quiet-token-of-the-api"


@pytest.fixture
def services(make_services: Callable[..., Services]) -> Services:
    return make_services(ops_tokens=f"ann:{TOKEN}", api_tokens=QUIET)


@pytest.fixture
def log_output(monkeypatch: pytest.MonkeyPatch, restored_logging: None) -> dict[str, io.StringIO]:
    """Everything that is logged, in both formats."""
    streams, handlers, ways = {}, [], []
    for log_format in ("json", "console"):
        streams[log_format] = io.StringIO()
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stderr", streams[log_format])
            configure(log_format)
        handlers += logging.getLogger().handlers
        ways.append((structlog.get_config()["processors"], streams[log_format]))

    def both_ways(logger: Any, method: str, event: EventDict) -> EventDict:
        for processors, stream in ways:
            line: Any = dict(event)
            for process in processors:
                line = process(logger, method, line)
            print(line, file=stream)
        raise structlog.DropEvent

    logging.getLogger().handlers = handlers
    structlog.configure(processors=[both_ways])
    return streams


def check_logs(log_output: dict[str, io.StringIO]) -> None:
    texts = {name: stream.getvalue() for name, stream in log_output.items()}
    for stream in log_output.values():
        stream.truncate(0)
        stream.seek(0)
    lines = {name: text.splitlines() for name, text in texts.items()}
    assert all(isinstance(json.loads(line), dict) for line in lines["json"])
    assert len(lines["console"]) == len(lines["json"]), "one event, one line"
    everything = "".join(texts.values())
    assert [word for word in (*CANARIES, SECRET, "v1=", "\x1b", "Traceback") if word in everything] == []


def what_became(engine: Engine) -> dict[str, Any]:
    columns = (Event.id, Event.status, Event.attempts, Event.error)
    with read_transaction(engine) as tx:
        return {row.id: row for row in tx.execute(select(*columns).where(Event.status != EventStatus.DONE))}


@pytest.mark.long
@pytest.mark.timeout(0)
def test_bad_bodies_fail_alone(endpoint: FlaskClient, engine: Engine, log_output: dict[str, io.StringIO]) -> None:
    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(bad=st.lists(posts, min_size=1, max_size=8))
    def holds(bad: list[Posted]) -> None:
        innocent = made("user.updated", id=f"user_innocent_{next(numbers)}")
        for body, headers in [*bad, Posted(json.dumps(innocent).encode(), {})]:
            answer = post(endpoint, body, **headers)
            assert answer.status_code in {200, 400, 401, 413}, answer.get_data(as_text=True)
        apply_all(engine, DrainLimits(first_backoff=600))
        assert outcomes(engine, innocent) == ["applied"]
        for id, row in what_became(engine).items():
            assert (row.status, row.attempts) == ("failed", 1), (id, row)
            assert FAILED_FOR_ITS_PAYLOAD.match(row.error), (id, row)
        check_logs(log_output)

    numbers = iter(range(10**9))
    holds()
    assert rows(engine, Batch) == []


ODD = [
    pytest.param(with_field(event_of("user.created"), ("data", "first_name"), said).encode(), id=f"{said[:12]!a}")
    for said in (*map(json.dumps, TEXTS), *DEEP[:-3], *DEEP[-2:], "NaN", "1e999", "9" * 4300, json.dumps("x" * 10**6))
] + [
    pytest.param(json.dumps(event_of("user.created")).encode(coding), id=coding)
    for coding in ("utf-8-sig", "utf-16-le", "utf-32-be")
]


@pytest.mark.long
@pytest.mark.parametrize("body", ODD)
def test_pages_show_any_accepted_event(
    local_door_of_ann: FlaskClient, local_engine: Engine, body: bytes, set_environment: Callable[..., None]
) -> None:
    endpoint = local_door_of_ann
    if post(endpoint, body).status_code != 200:
        assert rows(local_engine, Event) == []
        return
    apply_all(local_engine)
    (event,) = rows(local_engine, Event)
    set_environment(DATABASE_URL=local_engine.url.render_as_string(hide_password=False))
    for command in (
        ["events", "show", event["id"]],
        ["events", "list"],
        ["explain", event["id"]],
        ["events", "failures"],
    ):
        for arguments in (command, [*command, "--json"]):
            result = CliRunner().invoke(main, arguments)
            assert result.exit_code in {0, 1} and not isinstance(result.exception, Exception), (
                arguments,
                result.exception,
            )
            if "--json" in arguments and result.stdout:
                json.loads(result.stdout, parse_constant=refused)
    for path in (f"/ops/events/{event['id']}", "/ops/events", f"/ops/explain?name={event['id']}", "/ops/failures"):
        assert endpoint.get(path).status_code in {200, 404}, path
    for path in (f"/api/v1/events/{event['id']}", "/api/v1/events", "/api/v1/changes", "/api/v1/snapshot"):
        answer = endpoint.get(path, headers={"Authorization": f"Bearer {QUIET}"})
        assert answer.status_code == 200, path
        json.loads(answer.get_data(), parse_constant=refused)


def refused(word: str) -> None:
    raise AssertionError(f"{word} is no JSON")


@pytest.fixture
def local_services(local: Callable[..., Services]) -> Services:
    return local(ops_tokens=f"ann:{TOKEN}", api_tokens=QUIET)


@pytest.fixture
def local_door_of_ann(local_services: Services) -> FlaskClient:
    endpoint = create_app(local_services).test_client()
    assert sign_in(endpoint).status_code == 302
    return endpoint
