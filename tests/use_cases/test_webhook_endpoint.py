"""The webhook endpoint: how deliveries are answered and stored."""

import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import structlog
from flask.testing import FlaskClient
from freezegun import freeze_time
from sqlalchemy import Engine, create_engine

from models.database import PINNED, write_transaction
from models.tables import Event
from tests.support import SECRET, accept, apply_all, event_row, made, outcomes, post, rows, sample, sign, statuses
from tests.support.catalog import drop_schema
from tests.support.ops import sign_in
from webhooks.app import create_app
from worker.bootstrap import ENDPOINT_CONNECTIONS, Services
from worker.errors import ConfigurationError
from worker.kinds import KINDS
from worker.kinds.organization import Organization

WEBHOOK_PATH = "/webhooks/workos"
READER = "reader-token-0123456789"
OPERATOR = "ann-signs-in-with-this-token"
WORKOS_ADDRESS = "3.217.146.166"
NOW = 1_750_880_000.0
NOW_AS_TEXT = datetime.fromtimestamp(NOW, UTC).isoformat()
BODY = json.dumps(sample("organization.created")).encode()

MakeServices = Callable[..., Services]


def test_new_event_is_accepted_and_known_event_is_duplicate(endpoint: FlaskClient, engine: Engine) -> None:
    event = sample("user.created")
    assert (post(endpoint, event).status_code, post(endpoint, event).get_json()) == (200, {"status": "duplicate"})
    assert post(endpoint, made("user.created")).get_json() == {"status": "accepted"}
    row = event_row(engine, event["id"])
    assert (row["deliveries"], row["status"], row["source"], row["type"]) == (2, "pending", "webhook", "user.created")


def test_raw_bytes_are_stored(endpoint: FlaskClient, engine: Engine) -> None:
    body = b'{ "id":"event_raw",\n "event":"user.created", "data":{"name":"\xc3\xa9\\u00e9"}, "z":1, "a":2 }\n'
    assert post(endpoint, body).status_code == 200
    assert event_row(engine, "event_raw")["body"] == body


GOOD = sign(BODY, at=NOW)
MAC = GOOD.rpartition("v1=")[2]


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        pytest.param(None, "missing", id="no header"),
        pytest.param("", "missing", id="empty"),
        pytest.param("garbled", "mismatch", id="no parts"),
        pytest.param(f"v1={MAC}", "mismatch", id="no time"),
        pytest.param(f"t={round(NOW * 1000)}", "mismatch", id="no MAC"),
        pytest.param(f"t={round(NOW * 1000)}, v1=", "mismatch", id="empty MAC"),
        pytest.param(f"t={round(NOW * 1000)},v1={MAC}", "mismatch", id="no blank between the parts"),
        pytest.param(f"{GOOD}, v1={MAC}", "mismatch", id="a part too many"),
        pytest.param(f"t=, v1={MAC}", "mismatch", id="empty time"),
        pytest.param(f"t=soon, v1={MAC}", "mismatch", id="time is a word"),
        pytest.param(f"t={'9' * 400}, v1={MAC}", "mismatch", id="time is huge"),
        pytest.param(f"t={round(NOW * 1000)}, v1={'0' * 64}", "mismatch", id="wrong MAC"),
        pytest.param(f"t={round(NOW * 1000)}, v1=\xe9{MAC[1:]}", "mismatch", id="not ASCII"),
        pytest.param(f"t={round(NOW * 1000) + 1}, v1={MAC}", "mismatch", id="time is not the one signed"),
        pytest.param(sign(BODY, "another secret", NOW), "mismatch", id="another secret"),
        pytest.param(sign(BODY, "", NOW), "mismatch", id="signed with an empty secret"),
        pytest.param(sign(BODY + b" ", at=NOW), "mismatch", id="other bytes"),
        pytest.param(sign(BODY, at=NOW / 1000), "time", id="seconds in place of milliseconds"),
        pytest.param(sign(BODY, at=NOW - 181), "time", id="expired"),
        pytest.param(sign(BODY, at=NOW + 181), "time", id="from the future"),
    ],
)
def test_invalid_signature_is_refused(
    local_endpoint: FlaskClient, local_services: Services, logs: list[Any], header: str | None, reason: str
) -> None:
    with freeze_time(NOW_AS_TEXT):
        answer = local_endpoint.post(
            WEBHOOK_PATH, data=BODY, headers={} if header is None else {"WorkOS-Signature": header}
        )
    assert (answer.status_code, answer.get_json()) == (401, {"error": f"invalid signature: {reason}"})
    assert logs == [{"event": "signature_rejected", "reason": reason, "log_level": "warning"}]
    assert rows(local_services.engine, Event) == []


@pytest.mark.parametrize("at", [NOW - 179, NOW + 179])
def test_signature_within_tolerance_is_accepted(local_endpoint: FlaskClient, at: float) -> None:
    with freeze_time(NOW_AS_TEXT):
        assert (
            local_endpoint.post(WEBHOOK_PATH, data=BODY, headers={"WorkOS-Signature": sign(BODY, at=at)}).status_code
            == 200
        )


def test_tolerance_is_configurable(local: MakeServices) -> None:
    endpoint = create_app(local(webhook_tolerance_seconds=4000)).test_client()
    with freeze_time(NOW_AS_TEXT):
        assert (
            endpoint.post(WEBHOOK_PATH, data=BODY, headers={"WorkOS-Signature": sign(BODY, at=NOW - 3600)}).status_code
            == 200
        )
        assert (
            endpoint.post(WEBHOOK_PATH, data=BODY, headers={"WorkOS-Signature": sign(BODY, at=NOW - 4001)}).status_code
            == 401
        )


def test_both_secrets_work_during_rotation(make_services: MakeServices, engine: Engine) -> None:
    endpoint = create_app(
        make_services(workos_webhook_secrets=", ".join(each + SECRET for each in ("old", "new")))
    ).test_client()
    answers = [
        endpoint.post(WEBHOOK_PATH, data=BODY, headers={"WorkOS-Signature": sign(BODY, secret + SECRET)})
        for secret in ("new", "old", "oldest")
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 401]
    assert [row["deliveries"] for row in rows(engine, Event)] == [2]


def test_reserialized_json_does_not_verify(local_endpoint: FlaskClient) -> None:
    body = b'{"id":"event_1","event":"user.created","data":{}}'
    again = json.dumps(json.loads(body)).encode()
    assert local_endpoint.post(WEBHOOK_PATH, data=again, headers={"WorkOS-Signature": sign(body)}).status_code == 401


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not JSON",
        b"[" * 100_000,
        b"null",
        b'["event_1"]',
        b'"event_1"',
        b'{"event": "user.created", "data": {}}',
        b'{"id": "event_1", "data": {}}',
        b'{"id": "", "event": "user.created"}',
        b'{"id": 7, "event": "user.created"}',
        b'{"id": null, "event": "user.created"}',
        b'{"id": "event_1", "event": ["user.created"]}',
        b'{"id": "event_1", "event": ""}',
        b'{"id": "event_\\u0000", "event": "user.created"}',
        b'{"id": "event_\\ud800", "event": "user.created"}',
        '{"id": "event_é", "event": "user.created"}'.encode(),
        b'{"id": "' + b"e" * 256 + b'", "event": "user.created"}',
        b'{"id": "event_1", "event": "' + b"t" * 256 + b'"}',
    ],
)
def test_signed_body_that_is_not_an_event_is_malformed(
    local_endpoint: FlaskClient, local_services: Services, body: bytes
) -> None:
    answer = post(local_endpoint, body)
    assert answer.status_code == 400
    assert answer.get_json()["error"].startswith("the ")
    assert rows(local_services.engine, Event) == []


def test_signed_binary_is_refused(local_endpoint: FlaskClient) -> None:
    assert post(local_endpoint, b"\xff\xfe\xff").status_code == 401


def test_unsigned_empty_body_is_refused(local_endpoint: FlaskClient) -> None:
    assert local_endpoint.post(WEBHOOK_PATH).status_code == 401


class Unread:
    """A request body that must not be read."""

    def read(self, *_: object) -> bytes:
        raise AssertionError("the body was read")

    readline = readlines = __iter__ = read


def test_oversized_content_length_is_refused_unread(local: MakeServices) -> None:
    endpoint = create_app(local(webhook_max_bytes=2048)).test_client()
    answer = endpoint.post(WEBHOOK_PATH, environ_overrides={"wsgi.input": Unread(), "CONTENT_LENGTH": "2049"})
    assert (answer.status_code, answer.content_type) == (413, "application/json")


@pytest.mark.parametrize(("size", "status"), [(2047, 200), (2048, 200), (2049, 413), (100_000, 413)])
def test_chunked_body_is_read_up_to_the_limit(local: MakeServices, size: int, status: int) -> None:
    body = BODY.ljust(size)
    stream = BytesIO(body)
    # As a server hands over a chunked body.
    chunked = {"wsgi.input": stream, "wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"}
    endpoint = create_app(local(webhook_max_bytes=2048)).test_client()
    answer = endpoint.post(WEBHOOK_PATH, environ_overrides=chunked, headers={"WorkOS-Signature": sign(body)})
    assert answer.status_code == status
    assert stream.tell() <= 2049


def test_body_of_exactly_the_limit_is_accepted(local: MakeServices) -> None:
    body = BODY.ljust(2048)
    assert post(create_app(local(webhook_max_bytes=2048)).test_client(), body).status_code == 200


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT"])
def test_wrong_method_gets_405_with_allow(local_endpoint: FlaskClient, method: str) -> None:
    answer = local_endpoint.open(WEBHOOK_PATH, method=method)
    assert answer.status_code == 405
    assert "POST" in answer.headers["Allow"]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    ("token", "path", "status"),
    [
        ("s3cret0123456789", "/s3cret0123456789", 405),
        ("s3cret0123456789", "/another-token-0123", 404),
        ("s3cret0123456789", "", 404),
        (None, "/s3cret0123456789", 404),
        (None, "", 405),
    ],
)
def test_another_method_shows_whether_the_path_is_right(
    local: MakeServices, method: str, token: str | None, path: str, status: int
) -> None:
    endpoint = create_app(local(webhook_path_token=token)).test_client()
    assert endpoint.open(WEBHOOK_PATH + path, method=method).status_code == status


@pytest.mark.parametrize("path", ["/", "/webhooks", "/webhooks/workos/", "/webhooks/workos/x", "/webhooks/workos/x/y"])
def test_unknown_path_gets_404(local_endpoint: FlaskClient, path: str) -> None:
    answer = post(local_endpoint, sample("user.created"), path=path)
    assert (answer.status_code, answer.content_type) == (404, "application/json")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/s3cret0123456789", 200),
        ("", 404),
        ("/", 404),
        ("/s3cre", 404),
        ("/s3cret0123456789x", 404),
        ("/S3CRET0123456789", 404),
        ("/é", 404),
    ],
)
def test_path_token_is_required(local: MakeServices, path: str, status: int) -> None:
    endpoint = create_app(local(webhook_path_token="s3cret0123456789")).test_client()
    assert post(endpoint, sample("user.created"), path=WEBHOOK_PATH + path).status_code == status


@pytest.mark.parametrize(
    ("hops", "peer", "forwarded", "status"),
    [
        pytest.param(0, WORKOS_ADDRESS, None, 200, id="the address itself"),
        pytest.param(0, "203.0.113.7", None, 403, id="a stranger"),
        pytest.param(0, "203.0.113.7", WORKOS_ADDRESS, 403, id="a stranger who forges the header"),
        pytest.param(0, "", None, 403, id="no address, as on a socket"),
        pytest.param(1, "10.0.0.1", WORKOS_ADDRESS, 200, id="through the proxy"),
        pytest.param(1, "10.0.0.1", "203.0.113.7", 403, id="a stranger through the proxy"),
        pytest.param(1, "10.0.0.1", f"{WORKOS_ADDRESS}, 203.0.113.7", 403, id="a forged entry before the proxy's own"),
        pytest.param(1, "10.0.0.1", f"203.0.113.7, {WORKOS_ADDRESS}", 200, id="the proxy's own entry counts"),
        pytest.param(2, "10.0.0.1", f"{WORKOS_ADDRESS}, 10.0.0.2", 200, id="through two proxies"),
        pytest.param(2, "10.0.0.1", WORKOS_ADDRESS, 403, id="one proxy of two"),
        pytest.param(1, "10.0.0.1", "unknown", 403, id="no address in the header"),
        pytest.param(1, "10.0.0.1", f"{WORKOS_ADDRESS}:51234", 200, id="with a port"),
        pytest.param(1, "10.0.0.1", f"::ffff:{WORKOS_ADDRESS}", 200, id="mapped to IPv6"),
        pytest.param(1, "10.0.0.1", f'"[::FFFF:{WORKOS_ADDRESS}]:443"', 200, id="mapped, with a port"),
        pytest.param(0, f"::ffff:{WORKOS_ADDRESS}", None, 200, id="direct, on a socket for both versions"),
        pytest.param(1, "10.0.0.1", "[2001:db8::1]:443", 200, id="IPv6 with a port"),
        pytest.param(1, "10.0.0.1", "[2001:DB8:0:0::1]", 200, id="IPv6 in brackets"),
        pytest.param(1, "10.0.0.1", "2001:db8::1%eth0", 200, id="IPv6 with a zone"),
        pytest.param(1, "10.0.0.1", "2001:db8::2", 403, id="another IPv6 address"),
        pytest.param(1, "10.0.0.1", "203.0.113.7:51234", 403, id="a stranger with a port"),
        pytest.param(1, "10.0.0.1", f"{WORKOS_ADDRESS}:port", 403, id="no port"),
        pytest.param(1, "10.0.0.1", f"{WORKOS_ADDRESS}%eth0", 403, id="a zone in IPv4"),
    ],
)
def test_only_allowed_addresses_are_accepted(
    local: MakeServices, hops: int, peer: str, forwarded: str | None, status: int
) -> None:
    services = local(webhook_allowed_ips=f"{WORKOS_ADDRESS}, 198.51.100.0/24, 2001:db8::1", trusted_proxy_hops=hops)
    headers = {"WorkOS-Signature": sign(BODY)} | ({"X-Forwarded-For": forwarded} if forwarded else {})
    answer = (
        create_app(services)
        .test_client()
        .post(WEBHOOK_PATH, data=BODY, headers=headers, environ_overrides={"REMOTE_ADDR": peer})
    )
    assert answer.status_code == status


def test_every_address_is_accepted_without_allow_list(local_endpoint: FlaskClient) -> None:
    assert post(local_endpoint, sample("user.created")).status_code == 200


@pytest.mark.parametrize("type", ["dsync.activated", "something.new"])
def test_unknown_event_type_is_stored_and_ignored(endpoint: FlaskClient, engine: Engine, type: str) -> None:
    event = sample("dsync.activated") | {"event": type}
    accept(endpoint, event)
    apply_all(engine)
    row = event_row(engine, event["id"])
    assert (row["status"], row["outcome"], row["type"]) == ("done", "ignored", type)
    assert all(rows(engine, kind.table) == [] for kind in KINDS.values())


def test_unusable_data_fails_with_field_named(endpoint: FlaskClient, engine: Engine) -> None:
    event = made("organization_membership.created", user_id=None)
    accept(endpoint, event)
    apply_all(engine)
    row = event_row(engine, event["id"])
    assert (row["status"], row["attempts"], row["error"]) == ("failed", 1, "data.user_id: is missing")
    assert json.loads(row["body"]) == event


def away(tmp_path: Path) -> dict[str, str]:
    """Fault → URL of a database with that fault."""
    corrupt = tmp_path / "corrupt.db"
    corrupt.write_bytes(b"this is not a database, whatever its name says" * 100)
    return {
        "corrupt": f"sqlite:///{corrupt}",
        "unwritable": f"sqlite:///file:{tmp_path}/none.db?mode=ro&uri=true",
        "unmigrated": f"sqlite:///{tmp_path}/empty.db",
        "unreachable": "postgresql://nobody@127.0.0.1:1/none",
    }


@pytest.mark.parametrize("how", ["corrupt", "unwritable", "unmigrated", "unreachable"])
def test_unavailable_database_gets_503_with_retry_after(
    build_test_services: MakeServices, tmp_path: Path, logs: list[Any], how: str
) -> None:
    endpoint = create_app(build_test_services(database_url=away(tmp_path)[how])).test_client()
    logs.clear()
    answer = post(endpoint, sample("user.created"))
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) > 0
    assert [entry["event"] for entry in logs] == ["webhook_not_stored"]


NO_REDIS = ["redis://127.0.0.1:1/0", "unix:///nowhere/valkey.sock"]


@pytest.mark.parametrize("redis_away", NO_REDIS)
def test_events_are_accepted_without_redis(make_services: MakeServices, engine: Engine, redis_away: str) -> None:
    endpoint = create_app(make_services(redis_url=redis_away)).test_client()
    events = [made("organization.created", id=f"org_{n}") for n in range(3)]
    started = time.monotonic()
    accept(endpoint, *events)
    assert time.monotonic() - started < 1
    apply_all(engine)
    assert outcomes(engine, *events) == ["applied"] * 3


def test_accepted_events_ring_once(services: Services) -> None:
    endpoint = create_app(services).test_client()
    assert services.bell.queued_jobs() == 0
    accept(endpoint, made("user.created"), made("user.updated"))
    assert services.bell.queued_jobs() == 1


def test_refused_delivery_does_not_ring(local_services: Services) -> None:
    assert create_app(local_services).test_client().post(WEBHOOK_PATH, data=BODY).status_code == 401
    assert local_services.bell.queued_jobs() == 0


def test_logs_contain_no_secret_or_personal_data(
    make_services: MakeServices, engine: Engine, logs: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    endpoint = create_app(
        make_services(webhook_path_token="path-token-0123456789", redis_url=NO_REDIS[0])
    ).test_client()
    path = f"{WEBHOOK_PATH}/path-token-0123456789"
    story = [
        made("user.created", email="ada@private.example", first_name="Adelaide"),
        made("user.created", id=None, email="eve@private.example"),  # cannot be parsed
        made("user.updated", 1, email="ada@other.example", first_name="Adelaide"),
        made("organization_domain.verified", domain="private.example"),
    ]
    for event in story:
        assert post(endpoint, event, path=path).status_code == 200
    refused = endpoint.post(path, data=BODY, headers={"WorkOS-Signature": sign(BODY, "whsec_wrong")})
    assert refused.status_code == 401
    assert post(endpoint, b"[]", path=path).status_code == 400
    apply_all(engine)
    assert statuses(engine) == {"done": 3, "failed": 1}
    logged = json.dumps(logs, default=str) + caplog.text
    assert {"webhooks_stored", "signature_rejected", "payload_rejected", "batch_applied", "event_failed"} <= {
        entry["event"] for entry in logs
    }
    secrets = (SECRET, "path-token-0123456789", "whsec_wrong", sign(BODY, "whsec_wrong").rpartition("v1=")[2])
    assert [word for word in ("ada@", "eve@", "private.example", "Adelaide", "v1=", *secrets) if word in logged] == []


def test_delivery_log_names_event_and_workspace(local_endpoint: FlaskClient, logs: list[Any]) -> None:
    event = sample("organization_membership.created")
    accept(local_endpoint, event)
    [line] = [entry for entry in logs if entry["event"] == "webhooks_stored"]
    organization_id = event["data"]["organization_id"]
    assert line["events"] == [
        {"id": event["id"], "type": event["event"], "organization_id": organization_id, "new": True}
    ]
    assert structlog.contextvars.get_contextvars() == {}


def test_webhook_endpoint_requires_a_secret(local: MakeServices) -> None:
    with pytest.raises(ConfigurationError, match="WORKOS_WEBHOOK_SECRETS"):
        create_app(local(workos_webhook_secrets=""))


def test_healthz_is_200_without_database_and_redis(build_test_services: MakeServices) -> None:
    services = build_test_services(database_url="postgresql://nobody@127.0.0.1:1/none", redis_url=NO_REDIS[0])
    assert create_app(services).test_client().get("/healthz").get_json() == {"status": "alive"}


def test_readyz_reports_backlog(endpoint: FlaskClient) -> None:
    accept(endpoint, made("user.created"))
    answer = endpoint.get("/readyz")
    assert answer.status_code == 200
    body = answer.get_json()
    assert 0 <= body.pop("oldest_pending_seconds") < 60
    warnings = body.pop("warnings")
    assert body == {"status": "ready", "pending": 1, "failed": 0, "trusted": False}
    assert "no_worker" in warnings


def test_readyz_is_200_with_warning_without_redis(local: MakeServices) -> None:
    answer = create_app(local(redis_url=NO_REDIS[0])).test_client().get("/readyz")
    assert answer.status_code == 200
    assert "redis_away" in answer.get_json()["warnings"]


@pytest.mark.parametrize("how", ["corrupt", "unwritable", "unmigrated", "unreachable"])
def test_readyz_is_503_without_database(build_test_services: MakeServices, tmp_path: Path, how: str) -> None:
    answer = create_app(build_test_services(database_url=away(tmp_path)[how])).test_client().get("/readyz")
    assert (answer.status_code, answer.get_json()["status"]) == (503, "not ready")


def test_readyz_is_200_if_warnings_fail(endpoint: FlaskClient, engine: Engine) -> None:
    with write_transaction(engine) as tx:
        tx.exec_driver_sql("DROP TABLE hook_deliveries")
    answer = endpoint.get("/readyz")
    assert (answer.status_code, answer.get_json()) == (200, {"status": "ready", "warnings": None})


@pytest.mark.long
def test_concurrent_probes_share_one_check_of_the_warnings(
    build_test_services: MakeServices, make_database: Callable[[str], str], logs: list[Any]
) -> None:
    services = build_test_services(database_url=make_database("postgresql"))
    app = create_app(services)
    locking = create_engine(services.engine.url)
    with locking.begin() as tx, ThreadPoolExecutor(8) as do:
        tx.exec_driver_sql("LOCK TABLE hooks IN ACCESS EXCLUSIVE MODE")
        answers = list(do.map(lambda _: app.test_client().get("/readyz").get_json(), range(8)))
    locking.dispose()
    assert answers == [{"status": "ready", "warnings": None}] * 8
    assert [line["place"] for line in logs if line["event"] == "postponed"] == ["readiness"]


def test_readyz_is_503_with_missing_migrations(endpoint: FlaskClient, engine: Engine) -> None:
    drop_schema(engine)
    answer = endpoint.get("/readyz")
    assert answer.status_code == 503
    assert "not migrated" in answer.get_json()["reason"]


def test_stored_delivery_is_applied_by_next_worker(endpoint: FlaskClient, engine: Engine) -> None:
    event = made("organization.created")
    accept(endpoint, event)
    assert rows(engine, Organization) == []
    apply_all(engine)
    assert outcomes(engine, event) == ["applied"]


BROKEN_ENDPOINT = """
import sys
from dataclasses import replace
from tests.support import SECRET, made, post
from webhooks.app import create_app
from worker.logs import configure
from worker.settings import Settings
from worker.bootstrap import build_services

configure(sys.argv[1])
settings = Settings(_env_file=None, database_url="sqlite://", workos_webhook_secrets=SECRET)
parts = build_services(settings, "unix:///nowhere")
broken = create_app(replace(parts, inbox_engine=None)).test_client()
sys.exit(post(broken, made("user.created", email="ann@hidden.example")).status_code != 500)
"""


@pytest.mark.long
@pytest.mark.parametrize("log_format", ["json", "console"])
def test_unexpected_error_logs_no_secret_or_payload(log_format: str) -> None:
    # In a process of its own: logging is configured once in each.
    ended = subprocess.run(
        [sys.executable, "-c", BROKEN_ENDPOINT, log_format], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert "AttributeError" in ended.stderr
    assert SECRET not in ended.stderr and "ann@hidden" not in ended.stderr and "v1=" not in ended.stderr


def test_read_only_database_is_not_ready(
    build_test_services: Callable[..., Services],
    make_database: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = make_database("postgresql")
    monkeypatch.setitem(PINNED, "default_transaction_read_only", "on")  # as a standby is
    endpoint = create_app(build_test_services(database_url=url)).test_client()
    answer = endpoint.get("/readyz")
    assert (answer.status_code, answer.get_json()["status"]) == (503, "not ready")
    answer = post(endpoint, made("user.created"))
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")


@pytest.mark.long
def test_exhausted_read_connections_do_not_stop_deliveries(
    build_test_services: MakeServices, make_database: Callable[[str], str], logs: list[Any]
) -> None:
    services = build_test_services(
        database_url=make_database("postgresql"), api_tokens=READER, ops_tokens=f"ann:{OPERATOR}"
    )
    endpoint = create_app(services).test_client()
    sign_in(endpoint, OPERATOR)
    with ExitStack() as held:
        for _ in range(ENDPOINT_CONNECTIONS):
            held.enter_context(services.engine.connect())
        assert post(endpoint, made("user.created")).status_code == 200
        answer = endpoint.get("/readyz")
        assert (answer.status_code, answer.get_json()) == (200, {"status": "ready", "warnings": None})
        logs.clear()
        bearer = {"Authorization": f"Bearer {READER}"}
        answers = [endpoint.get(path, headers=bearer) for path in ("/ops/", "/api/v1/members", "/api/v1/snapshot")]
        metrics = endpoint.get("/metrics").get_data(as_text=True)
    assert "workos_sync_database_up 0.0" in metrics and "workos_sync_redis_up 1.0" in metrics
    assert [answer.status_code for answer in answers] == [503] * 3
    assert [answer.headers.get("Retry-After") for answer in answers[1:]] == ["5"] * 2
    assert [(line["event"], line["error"]) for line in logs] == [
        ("database_unavailable", "the database: all connections of this process are in use")
    ] * 3
    assert endpoint.get("/api/v1/members", headers=bearer).status_code == 200


@pytest.mark.parametrize("failing", ["/webhooks/workos/path-token-0123456789", "/ops/sign-in"])
def test_unexpected_error_is_logged_without_path_and_message(
    local: MakeServices, caplog: pytest.LogCaptureFixture, logs: list[Any], failing: str
) -> None:
    app = create_app(local(webhook_path_token="path-token-0123456789", ops_tokens=f"ann:{OPERATOR}"))

    @app.before_request
    def fail() -> None:
        raise KeyError("ann@acme.example")

    logs.clear()
    assert app.test_client().get(failing).status_code == 500
    [line] = logs
    assert line["event"] == "unexpected_error" and line["error"].startswith("KeyError at ")
    assert "test_webhook_endpoint.py" in line["stack"]
    logged = json.dumps(line, default=str) + caplog.text
    assert "ann@" not in logged and "path-token" not in logged
