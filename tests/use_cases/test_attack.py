"""Attacks on the webhook endpoint, the filters and the logs."""

import ast
import io
import json
import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from flask.testing import FlaskClient
from freezegun import freeze_time
from redis.connection import AbstractConnection
from redis.exceptions import RedisError
from sqlalchemy import Engine
from structlog import get_logger

import webhooks
from models.tables import Event
from tests.support import accept, apply_all, made, mirrored, post, rows, sign, statuses
from tests.support.ops import TOKEN, form_token, sign_in
from webhooks.app import create_app
from worker.bootstrap import Services
from worker.cli import main
from worker.logs import configure
from worker.processes.jobs import make_worker
from worker.queue.doorbell import DRAIN
from worker.redis_client import open_redis

pytestmark = pytest.mark.long

WEBHOOK_PATH = "/webhooks/workos"
READER = "a-token-that-only-reads"
QUOTES = ("' OR '1'='1", '"', "\\", "%", "_", "$$", "\0", "')) OR 1=1; DROP TABLE events; --")

MakeServices = Callable[..., Services]


# Replayed deliveries


def test_replayed_delivery_is_refused_or_changes_nothing(local_endpoint: FlaskClient, local_engine: Engine) -> None:
    events = [made("organization.created"), made("user.created"), made("organization_membership.created")]
    accept(local_endpoint, *events)
    apply_all(local_engine)
    before = mirrored(local_engine)
    bodies = [json.dumps(event).encode() for event in events]
    with freeze_time("2026-03-01 12:00:00"):
        captured = [(body, {"WorkOS-Signature": sign(body)}) for body in bodies]
        again = [local_endpoint.post(WEBHOOK_PATH, data=body, headers=headers) for body, headers in captured]
    assert [answer.get_json() for answer in again] == [{"status": "duplicate"}] * 3
    with freeze_time("2026-03-01 12:03:01"):
        late = [local_endpoint.post(WEBHOOK_PATH, data=body, headers=headers) for body, headers in captured]
    assert [answer.status_code for answer in late] == [401] * 3
    apply_all(local_engine)
    assert mirrored(local_engine) == before and statuses(local_engine) == {"done": 3}


# Path tricks


TOKEN_PATH = "/s3cret0123456789"
NO_TOKEN = [
    *("", "/", "//", "/.", "/./", "/*", "/None", "/%ff", "/%73%33cre", "?token=s3cret0123456789"),
    *(TOKEN_PATH + more for more in ("/", "//", "/.", ";x", "%20", "%2f", "%0a", "\u0301")),
    *(f"/{before}s3cret0123456789" for before in ("/", "%20", "%2f", "x/../", "../workos/", "%2e%2e%2fworkos%2f")),
    *(TOKEN_PATH.upper(), "/\uff53\uff13cret"),
]
"""Texts after the path of the endpoint, where the token should be."""


@pytest.mark.parametrize(
    ("path", "code"), [*((path, 404) for path in NO_TOKEN), pytest.param(f"{TOKEN_PATH}%00", 400, id="NUL")]
)
def test_altered_path_is_refused(local: MakeServices, path: str, code: int) -> None:
    endpoint = create_app(local(webhook_path_token=TOKEN_PATH[1:])).test_client()
    assert post(endpoint, made("user.created"), path=WEBHOOK_PATH + path).status_code == code


def test_percent_encoded_path_token_is_accepted(local: MakeServices) -> None:
    endpoint = create_app(local(webhook_path_token="s3cret0123456789")).test_client()
    assert post(endpoint, made("user.created"), path=f"{WEBHOOK_PATH}/%73%33%63ret0123456789").status_code == 200


# Log lines


EVIL = 'x\r\n{"event": "forged"}\r\n2026-01-01 [info] forged\x1b[2J\x1b]0;title\x07\u2028\u0085\u202e\x9b31m\0'


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_log_entry_is_one_printable_line(
    log_format: Any, monkeypatch: pytest.MonkeyPatch, restored_logging: None
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    configure(log_format)
    get_logger("test").warning("something", path=EVIL, nested={"a": [EVIL]}, nothing=None, plain="event_1", number=7)
    logging.getLogger("library").warning("says %s", EVIL)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert all(character.isprintable() for line in lines for character in line)
    assert "event_1" in lines[0]


PRIVATE = "ann@acme.example"


def fail_with_cause() -> None:
    try:
        fail()
    except OSError as error:
        raise ValueError(PRIVATE) from error


def fail(*_: object, **__: object) -> None:
    raise OSError(PRIVATE)


LIBRARY_LINES: dict[str, tuple[object, ...]] = {
    "a value as an argument": ("Worker %s: quitting", PRIVATE),
    "a message made of values": (f"{PRIVATE} is wrong",),
    "a traceback in the message": (f"failed\n{PRIVATE}",),
    "an exception as the message": (OSError(PRIVATE),),
    "an exception as an argument": ("failed: %s", OSError(PRIVATE)),
    "arguments that do not fit": ("Worker: quitting", PRIVATE),
}


@pytest.mark.parametrize("log_format", ["json", "console"])
@pytest.mark.parametrize("said", LIBRARY_LINES.values(), ids=LIBRARY_LINES)
def test_log_lines_of_libraries_name_class_and_place_and_no_value(
    log_format: Any, said: tuple[object, ...], monkeypatch: pytest.MonkeyPatch, restored_logging: None
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    configure(log_format)
    try:
        fail_with_cause()
    except ValueError:
        logging.getLogger("library").exception(*said)
    written = stream.getvalue()
    assert PRIVATE not in written
    places = (
        r"ValueError at \S+test_attack.py:\d+ in fail_with_cause; caused by OSError at \S+test_attack.py:\d+ in fail"
    )
    assert re.search(places, written)
    assert "library" in written and re.search(r"test_attack.py:\d+ in test_log_lines_of_libraries", written)


def test_constant_messages_of_libraries_are_kept(monkeypatch: pytest.MonkeyPatch, restored_logging: None) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    configure("json")
    logging.getLogger("library").warning("Worker %s: quitting", PRIVATE)
    logging.getLogger("library").warning("made of " + PRIVATE)  # noqa: G003
    events = [json.loads(line)["event"] for line in stream.getvalue().splitlines()]
    assert events == ["Worker …: quitting", "library_message"]


def test_an_error_in_the_loop_of_rq_is_logged_without_its_value(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, restored_logging: None
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    configure("json")

    def lose_redis(_: bool) -> None:
        monkeypatch.setattr(AbstractConnection, "send_packed_command", fail)

    with open_redis(redis_url) as redis:
        worker = make_worker(redis, DRAIN, {})
        monkeypatch.setattr(worker, "check_for_suspension", lose_redis)  # the first step of its loop
        with pytest.raises(RedisError):
            worker.work(burst=True)
        monkeypatch.undo()
    assert PRIVATE not in stream.getvalue()
    assert "caused by OSError at" in stream.getvalue()


def test_headers_and_paths_cannot_forge_log_lines(
    local: MakeServices, monkeypatch: pytest.MonkeyPatch, restored_logging: None
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    configure("console")
    endpoint = create_app(local(ops_tokens=f"ann:{TOKEN}")).test_client()
    sign_in(endpoint)
    stream.truncate(0)
    for header in ("User-Agent", "WorkOS-Signature", "X-Forwarded-For", "X-Request-Id", "Referer"):
        endpoint.post(WEBHOOK_PATH, data=b"{}", headers={header: "x\x1b[31m\x85forged"})
    endpoint.post("/ops/events/x%1b[31m/replay", data={})
    endpoint.get("/ops/%0d%0aforged%1b[31m")
    lines = stream.getvalue().lstrip("\0").splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d\S* \S* ?\[", line) for line in lines), lines
    assert sum("signature_rejected" in line or "csrf_rejected" in line for line in lines) == 6
    assert "\x1b" not in stream.getvalue()


# Quotes and wildcards in filters


@pytest.fixture
def services(make_services: MakeServices) -> Services:
    return make_services(ops_tokens=f"ann:{TOKEN}", api_tokens=READER)


@pytest.fixture
def filled(endpoint: FlaskClient, engine: Engine) -> Engine:
    accept(endpoint, made("organization.created", name="Acme"), made("user.created", email="ann@acme.example"))
    accept(endpoint, made("organization_membership.created", status="active"), made("user.updated", id=None))
    apply_all(engine)
    sign_in(endpoint)
    return engine


PAGES = {
    "events": ("status", "type", "organization_id", "fingerprint", "after"),
    "workspaces": ("name", "after"),
    "people": ("email",),
    "permissions": ("after",),
}


@pytest.mark.parametrize("said", QUOTES)
def test_quotes_and_wildcards_in_filters_are_literal(
    endpoint: FlaskClient, filled: Engine, set_environment: Callable[..., None], said: str
) -> None:
    for page, names in PAGES.items():
        for name in names:
            answer = endpoint.get(f"/ops/{page}", query_string={name: said})
            assert answer.status_code == (400 if "\0" in said else 200), (page, name)
            shown = answer.get_data(as_text=True).count("<tr><td")
            assert shown == 0 or name == "after" or _shows_none(answer.get_data(as_text=True)), (page, name)
    assert endpoint.get("/ops/explain", query_string={"name": said}).status_code in {400, 404}
    bearer = {"Authorization": f"Bearer {READER}"}
    for rule in endpoint.application.url_map.iter_rules():
        if rule.rule.startswith("/api/v1/") and "snapshot" not in rule.rule and "GET" in (rule.methods or ()):
            names = ("organization_id", "user_id", "email", "type", "status", "after", "limit", "state", "external_id")
            for name in names:
                answer = endpoint.get(f"/api/v1/{rule.rule.split('/')[3]}", query_string={name: said}, headers=bearer)
                assert answer.status_code in {200, 400, 404, 503}, (rule.rule, name)
    if "\0" not in said:  # no argument of a command can hold it
        set_environment(DATABASE_URL=filled.url.render_as_string(hide_password=False))
        for command in (
            ["events", "list", "--type"],
            ["events", "list", "--organization"],
            ["workspaces", "--name"],
            ["explain"],
        ):
            result = CliRunner().invoke(
                main, [*command, "--json", "--", said] if command == ["explain"] else [*command, said, "--json"]
            )
            assert result.exit_code in {0, 1} and json.loads(result.stdout or "[]") == [], (command, result.output)
    assert len(rows(filled, Event)) == 4


def _shows_none(html: str) -> bool:
    return 'class="none"' in html


# Comparisons


def test_secrets_are_compared_in_constant_time() -> None:
    """No module compares a token, secret or signature with `==`; only `compare_digest` does."""
    folder = Path(next(iter(webhooks.__path__)))
    compared = []
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare) and any(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops):
                names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
                names |= {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)}
                if any(word in name.lower() for word in ("token", "secret", "signature", "mac") for name in names):
                    compared.append(ast.unparse(node))
    assert compared == []
    callers = {path.stem for path in folder.rglob("*.py") if "hmac.compare_digest(" in path.read_text()}
    assert callers == {"receive", "auth"}


# Sessions


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE"])
def test_unexpected_methods_change_nothing(endpoint: FlaskClient, filled: Engine, method: str) -> None:
    before = rows(filled, Event), mirrored(filled)
    token = form_token(endpoint.get("/ops/failures"))
    for rule in endpoint.application.url_map.iter_rules():
        url = rule.rule.replace("<path:", "<")
        for part in ("organization_id", "event_id", "run_id", "user_id", "name", "fingerprint", "token", "filename"):
            url = url.replace(f"<{part}>", "x")
        answer = endpoint.open(url, method=method, data={"csrf_token": token, "reason": "x"})
        assert answer.status_code < 500 or answer.status_code == 503
    assert (rows(filled, Event), mirrored(filled)) == before


# Metrics


def test_customers_cannot_add_series_to_the_metrics(local_endpoint: FlaskClient, local_engine: Engine) -> None:
    slugs = [*(f"role-{number:03}" for number in range(100)), "role-000", "a" * 200, 'x"y\nz', "ü", "other"]
    events = []
    for place, slug in enumerate(slugs):
        data: Any = {"id": f"om_{place}", "role": {"slug": slug}, "roles": [{"slug": slug}]}
        events.append(made("organization_membership.created", event_id=f"event_{place}", **data))
    accept(local_endpoint, *events)
    apply_all(local_engine)
    text = local_endpoint.get("/metrics").get_data(as_text=True)
    series = dict(re.findall(r'^workos_sync_unmapped_roles{slug="(.*)"} (\S+)$', text, re.MULTILINE))
    assert len(series) <= 21 and all(re.fullmatch(r"[\w.:-]{1,64}", slug) for slug in series)
    assert series["role-000"] == "2.0" and sum(map(float, series.values())) == len(slugs)
