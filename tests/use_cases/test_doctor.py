"""`doctor` and `register`: what an installation lacks, and how to fix it."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import oidc_provider_mock
import pytest
from click.testing import CliRunner
from flask import Flask
from freezegun import freeze_time
from pydantic import SecretStr
from redis import Redis
from sqlalchemy import Engine, insert, make_url, update

from models.database import in_transaction
from models.tables import Event, MirrorState, Run, Tick
from models.types import db_now, db_now_plus
from tests.support import SECRET, accept, fake_workers, made, serving
from tests.support.catalog import drop_schema
from tests.support.cli import report, run
from tests.support.conditions import stop_webhooks
from tests.support.hooks import SECRET as HOOK_SECRET
from tests.support.resync import CLIENT_ID, settings_of
from tests.support.stack.machine import free_ports
from tests.support.tail import fresh
from webhooks.app import create_app
from worker import oidc_issuer
from worker.bootstrap import CLAIM, CLAIM_SECONDS, build_services
from worker.cli import main
from worker.kinds import SUBSCRIBED
from worker.notify import targets
from worker.processes.clock import heartbeat
from worker.repair.schedule import CLOCK_TICK, WEB_TICK
from worker.reports.conditions import MANY_GAPS
from worker.sandbox import Sandbox
from worker.sandbox.delivery import Endpoint
from worker.settings import load_settings

pytestmark = pytest.mark.long

URL = "https://sync.acme.example/webhooks/workos"
PASSWORD = "unheard-of-password"


@pytest.fixture(autouse=True)
def _surroundings(
    set_environment: Callable[..., None],
    make_database: Callable[[str], str],
    sandbox: Sandbox,
    restored_logging: None,
) -> None:
    given = {"DATABASE_URL": make_database("sqlite"), "WORKOS_WEBHOOK_SECRETS": SECRET}
    tokens = {"OPS_TOKENS": "ann:" + "a" * 32, "API_TOKENS": "product:" + "b" * 32}
    set_environment(**given, **tokens, **settings_of(sandbox))


def wrong() -> dict[str, dict[str, str]]:
    """The failures that doctor reports, by name."""
    checks = json.loads(run("doctor", "--json", exit_code=1).stdout)
    return {check["name"]: check for check in checks if check["level"] == "failure"}


@pytest.fixture
def healthy(configured_engine: Engine, redis_url: str, sandbox: Sandbox) -> Iterator[Sandbox]:
    """An installation that has everything it needs."""
    run("register", URL)
    row = {"id": "run1", "task": "resync", "requested_by": "clock", "status": "done", "finished_at": db_now()}
    in_transaction(configured_engine, lambda tx: tx.execute(insert(Run).values(row)))
    filled = {"backfill_from": db_now_plus(-9000), "backfilled_at": db_now(), "last_resync_at": db_now()}
    bound = filled | {"client_id": CLIENT_ID}
    in_transaction(configured_engine, lambda tx: tx.execute(update(MirrorState).values(bound)))
    fresh(configured_engine)
    heartbeat(configured_engine)
    settings = load_settings()
    services = build_services(settings, redis_url, endpoint=True)
    accept(create_app(services).test_client(), made("organization.created"))
    in_transaction(configured_engine, lambda tx: tx.execute(update(Event).values(status="done")))
    services.close()
    with fake_workers.registered(redis_url):
        yield sandbox


@pytest.fixture
def answering(healthy: Sandbox, redis_url: str) -> Iterator[None]:
    """A worker of the lane `drain` that starts queued jobs."""
    with fake_workers.answering(redis_url):
        yield


def test_healthy_installation_has_no_failure(answering: None) -> None:
    shown = run("doctor").stdout
    assert "failure" not in shown and "enabled, with exactly the" in shown
    checks = json.loads(run("doctor", "--json").stdout)
    assert {check["name"] for check in checks if check["level"] == "warning"} == {"database", "redis persistence"}


@pytest.mark.long
def test_registered_worker_that_does_not_answer_is_a_failure(healthy: Sandbox) -> None:
    assert "REDIS_URL" in wrong()["doorbell"]["remedy"]


def setting(name: str, value: str) -> Callable[..., None]:
    return lambda healthy, engine, redis, monkeypatch: monkeypatch.setenv(name, value)


def without(*names: str) -> Callable[..., object]:
    return lambda healthy, engine, redis, monkeypatch: [monkeypatch.delenv(name) for name in names]


def statement(make: Callable[[], Any]) -> Callable[..., object]:
    return lambda healthy, engine, redis, monkeypatch: in_transaction(engine, lambda tx: tx.execute(make()))


def endpoint(**values: Any) -> Callable[..., None]:
    def change(healthy: Sandbox, *_: object) -> None:
        (registered,) = healthy.deliveries.endpoints.values()
        for name, value in values.items():
            setattr(registered, name, value)

    return change


def no_workers(healthy: Sandbox, engine: Engine, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_workers.forget(redis)


def gone(healthy: Sandbox, *_: object) -> None:
    healthy.deliveries.endpoints.clear()


def another_environment(healthy: Sandbox, engine: Engine, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    in_transaction(engine, lambda tx: tx.execute(update(MirrorState).values(client_id="client_other")))


FAULTS: dict[str, tuple[Callable[..., object], str, str]] = {
    "the database is away": (setting("DATABASE_URL", "sqlite:////proc/nowhere/all.db"), "database", "DATABASE_URL"),
    "it is not migrated": (
        lambda healthy, engine, redis, monkeypatch: drop_schema(engine),
        "migrations",
        "workos-sync migrate",
    ),
    "Redis is away": (setting("REDIS_URL", "unix:///nowhere.sock"), "redis", "REDIS_URL"),
    "no key": (without("WORKOS_API_KEY", "WORKOS_CLIENT_ID"), "WorkOS key", "WORKOS_API_KEY"),
    "neither secret nor key": (
        without("WORKOS_WEBHOOK_SECRETS", "WORKOS_API_KEY", "WORKOS_CLIENT_ID"),
        "webhook secret",
        "register",
    ),
    "a dead key": (setting("WORKOS_API_KEY", "sk_dead"), "WorkOS key", "valid key"),
    "another environment's": (another_environment, "WorkOS environment", "key and client id"),
    "no endpoint": (gone, "webhook endpoint", "workos-sync register"),
    "a disabled endpoint": (endpoint(enabled=False), "webhook endpoint", "workos-sync register"),
    "an endpoint without deletes": (
        endpoint(events=[type for type in SUBSCRIBED if "deleted" not in type]),
        "webhook endpoint",
        "workos-sync register",
    ),
    "no workers": (no_workers, "no worker", "workos-sync worker"),
    "no clock": (
        statement(lambda: update(Tick).where(Tick.name == CLOCK_TICK).values(at=db_now_plus(-300))),
        "no clock",
        "workos-sync clock",
    ),
    "resyncs stopped": (
        statement(lambda: update(Run).values(created_at=db_now_plus(-99 * 3600), finished_at=db_now_plus(-98 * 3600))),
        "resync late",
        "workos-sync runs list",
    ),
    "failed events": (statement(lambda: update(Event).values(status="failed")), "failed events", "events failures"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_has_a_remedy(
    fault: str,
    healthy: Sandbox,
    answering: None,
    configured_engine: Engine,
    redis: Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seed, name, remedy = FAULTS[fault]
    seed(healthy, configured_engine, redis, monkeypatch)
    found = wrong()
    assert name in found and remedy in found[name]["remedy"], found


def test_redis_with_eviction_is_a_failure(healthy: Sandbox, answering: None, redis: Redis) -> None:
    redis.config_set("maxmemory-policy", "allkeys-lru")
    try:
        assert "noeviction" in wrong()["redis eviction"]["remedy"]
    finally:
        redis.config_set("maxmemory-policy", "noeviction")


def test_unneeded_event_types_are_a_warning(healthy: Sandbox, answering: None) -> None:
    (registered,) = healthy.deliveries.endpoints.values()
    for events in ([], [*SUBSCRIBED, "dsync.activated"]):
        registered.events = events
        checks = {check["name"]: check for check in json.loads(run("doctor", "--json").stdout)}
        assert checks["webhook endpoint"]["level"] == "warning"
    run("register", URL)
    assert sorted(registered.events or ()) == SUBSCRIBED


def test_wrong_clock_is_a_failure(healthy: Sandbox) -> None:
    with freeze_time(datetime.now(UTC) + timedelta(minutes=10)):
        assert "NTP" in wrong()["clock of the database"]["remedy"]


def test_stopped_webhooks_are_a_failure(healthy: Sandbox, answering: None, configured_engine: Engine) -> None:
    stop_webhooks(configured_engine)
    assert "reachable" in wrong()["silent"]["remedy"]


def test_without_a_secret_webhooks_are_expected_while_web_runs_elsewhere(
    healthy: Sandbox, answering: None, configured_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    healthy.deliveries.endpoints.clear()
    stop_webhooks(configured_engine)
    gap = {"type": "user.updated", "source": "events_api", "status": "done", "webhook_at": None}
    times = {"api_at": db_now_plus(-1800), "occurred_at": db_now_plus(-1800), "received_at": db_now_plus(-1800)}
    rows = [gap | {"id": f"gap_{number}"} for number in range(MANY_GAPS + 1)]
    in_transaction(configured_engine, lambda tx: tx.execute(insert(Event).values(times), rows))

    def levels() -> dict[str, str]:
        checks = json.loads(CliRunner().invoke(main, ["doctor", "--json"]).stdout)
        return {check["name"]: check["level"] for check in checks}

    def days_ago(days: float, statement: Any, *columns: str) -> None:
        values = dict.fromkeys(columns, db_now_plus(-days * 86_400))
        in_transaction(configured_engine, lambda tx: tx.execute(statement.values(**values)))

    webhooks = update(Event).where(Event.webhook_at.is_not(None))
    missed = {"silent": "failure", "missed webhooks": "warning"}.items()
    without("WORKOS_WEBHOOK_SECRETS")(healthy, configured_engine, None, monkeypatch)
    assert levels().items() >= missed
    days_ago(8, webhooks, "webhook_at")
    days_ago(2, insert(Tick).values(name=WEB_TICK), "at")
    assert levels().items() >= missed
    days_ago(8, update(Tick).where(Tick.name == WEB_TICK), "at")
    found = levels()
    assert found.keys() & {"silent", "missed webhooks", "webhook endpoint"} == set()
    assert "failure" not in found.values() and found["webhook secret"] == found["last webhook"] == "ok"
    monkeypatch.setenv("WORKOS_WEBHOOK_SECRETS", SECRET)
    assert {"silent", "missed webhooks", "webhook endpoint"} <= levels().keys()


@pytest.mark.parametrize("name", ["resync late", "silent"])
def test_a_process_without_the_api_key_reports_what_the_others_neglect(
    name: str, healthy: Sandbox, answering: None, configured_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "silent":
        stop_webhooks(configured_engine)
    else:
        FAULTS["resyncs stopped"][0](healthy, configured_engine, None, monkeypatch)
    without("WORKOS_API_KEY", "WORKOS_CLIENT_ID")(healthy, configured_engine, None, monkeypatch)
    assert name in wrong()


@pytest.fixture(scope="module")
def issuer() -> Iterator[str]:
    with oidc_provider_mock.run_server_in_thread() as server:
        yield f"http://localhost:{server.server_port}"


def check(name: str) -> dict[str, str]:
    """The row of that name; other checks may fail too."""
    [row] = [row for row in json.loads(run("doctor", "--json", exit_code=None).stdout) if row["name"] == name]
    assert isinstance(row, dict)
    return row


@pytest.mark.filterwarnings("ignore:::oidc_provider_mock", "ignore:::authlib")  # the provider's own
def test_the_identity_provider_is_asked_who_it_is(issuer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"OIDC_CLIENT_ID": "pages", "OIDC_CLIENT_SECRET": "a-secret-of-this-client", "OPS_ALLOWED": "ops"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)

    def found(url: str) -> tuple[str, str]:
        monkeypatch.setenv("OIDC_ISSUER", url)
        row = check("OIDC_ISSUER")
        return row["level"], f"{row['saw']}: {row['remedy']}"

    assert found(issuer) == ("ok", f"{issuer} answers, and is the issuer: ")
    for url, problem in {
        issuer + "/": f"calls itself '{issuer}': set OIDC_ISSUER",
        issuer + "/elsewhere": "/elsewhere/.well-known/openid-configuration answers 404: set OIDC_ISSUER",
        "http://localhost:1": "does not answer: ConnectError: check OIDC_ISSUER",
    }.items():
        level, text = found(url)
        assert level == "failure" and problem in text


def test_an_identity_provider_that_sends_slowly_delays_doctor_for_seconds_only() -> None:
    app = Flask("slow")
    ended = threading.Event()

    @app.get("/.well-known/openid-configuration")
    def trickle() -> Iterator[bytes]:
        while not ended.wait(0.2):
            yield b" "

    with serving(app) as url:
        begun = time.monotonic()
        assert oidc_issuer.problem_of(url) == (
            f"{url}/.well-known/openid-configuration is no discovery document",
            oidc_issuer.CORRECT,
        )
        ended.set()
    assert time.monotonic() - begun < 2 * oidc_issuer.READ_SECONDS


def test_the_dsn_of_sentry_is_checked_and_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENTRY_DSN", "https://key@sentry.example/not-a-number")
    row = check("SENTRY_DSN")
    assert (row["level"], row["saw"]) == ("failure", "is not a DSN") and "Client keys" in row["remedy"]
    monkeypatch.setenv("SENTRY_DSN", "https://key@sentry.example/1")
    row = check("SENTRY_DSN")
    assert (row["level"], row["saw"]) == ("ok", "errors are reported to sentry.example")


def test_targets_of_notify_that_cannot_be_checked_are_not_called_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY", "nothing://a")
    row = check("NOTIFY")
    assert row["level"] == "failure" and "Apprise knows no service nothing://" in row["saw"]
    monkeypatch.setenv("NOTIFY", "json://127.0.0.1:1")
    assert check("NOTIFY")["level"] == "ok"
    monkeypatch.setattr(targets, "SEND_SECONDS", 0.001)
    row = check("NOTIFY")
    assert row["level"] == "warning" and "not checked: no answer within" in row["saw"]


def test_doctor_says_why_there_is_no_connection_to_workos(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKOS_BASE_URL", f"http://127.0.0.1:{free_ports(1)[0]}")
    assert "Connection refused" in check("WorkOS")["saw"]


def test_doctor_reports_that_another_database_uses_the_same_redis(answering: None, redis: Redis) -> None:
    assert check("redis keys")["level"] == "ok"
    redis.set(CLAIM, "another", ex=CLAIM_SECONDS)
    found = wrong()
    assert "ENVIRONMENT_NAME" in found["redis claimed"]["remedy"]


def test_missing_tokens_are_a_warning(answering: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("API_TOKENS")
    checks = {check["name"]: check for check in json.loads(run("doctor", "--json").stdout)}
    assert checks["OPS_TOKENS"]["level"] == "ok" and checks["API_TOKENS"]["level"] == "warning"
    assert "API_REFRESH_NAMES" not in checks


def test_doctor_names_the_tokens_that_do_more_than_read(answering: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def found() -> str:
        checks = json.loads(run("doctor", "--json").stdout)
        [saw] = [check["saw"] for check in checks if check["name"] == "API_REFRESH_NAMES"]
        return str(saw)

    assert found() == "not set: every token only reads"
    monkeypatch.setenv("API_REFRESH_NAMES", "product")
    assert found() == "may refresh: product"


def test_a_schema_with_sqlite_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_SCHEMA", "workos")
    rows = json.loads(run("doctor", "--json", exit_code=1).stdout)
    assert [(row["name"], row["level"]) for row in rows] == [
        ("DATABASE_SCHEMA", "failure"),
        ("other checks", "warning"),
    ]


def test_invalid_settings_are_rows_beside_all_other_checks(answering: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("HOOK_SECRETS", "crm:x"), ("OPS_TOKENS", "ann:short"), ("WORKOS_BASE_URL", "ftp://x")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OPS_TOKEN", "x")
    rows = json.loads(run("doctor", "--json", exit_code=1).stdout)
    checks = {row["name"]: row for row in rows}
    assert len(checks) == len(rows), "each is reported once"
    assert {"HOOK_SECRETS", "OPS_TOKENS", "WORKOS_BASE_URL"} <= {
        row["name"] for row in rows if row["level"] == "failure"
    }
    assert all(checks[name]["remedy"] for name in ("HOOK_SECRETS", "OPS_TOKENS", "WORKOS_BASE_URL"))
    assert checks["OPS_TOKEN"]["level"] == "warning" and "OPS_TOKENS" in checks["OPS_TOKEN"]["remedy"]
    assert {"database", "redis", "webhook secret", "clock"} <= checks.keys()
    assert "WorkOS key" not in checks, "WorkOS itself is not called with the key of a sandbox"


@pytest.mark.parametrize(("name", "value"), [("DATABASE_URL", "mysql://h/n"), ("REDIS_URL", "redis://h?foo=1")])
def test_nothing_is_checked_at_a_default_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    rows = json.loads(run("doctor", "--json", exit_code=1).stdout)
    assert [row["name"] for row in rows] == [name, "other checks"] and name in rows[1]["remedy"]
    assert not (tmp_path / ".workos-sync").exists()


def test_unencrypted_hook_is_a_warning_if_allowed(answering: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOKS", "crm=http://far.example/hook")
    monkeypatch.setenv("HOOK_SECRETS", f"crm:{HOOK_SECRET}")
    assert "ALLOW_PLAIN_HTTP" in wrong()["HOOKS"]["remedy"]
    monkeypatch.setenv("ALLOW_PLAIN_HTTP", "true")
    checks = {check["name"]: check for check in json.loads(run("doctor", "--json", exit_code=1).stdout)}
    assert checks["HOOKS"]["level"] == "warning" and "crm" in checks["HOOKS"]["saw"]


def test_postgresql_is_ok(
    healthy: Sandbox, answering: None, make_database: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = make_url(make_database("postgresql")).set(password=PASSWORD)
    monkeypatch.setenv("DATABASE_URL", url.render_as_string(hide_password=False))
    output = run("doctor", "--json", exit_code=1).stdout
    checks = {check["name"]: check for check in json.loads(output)}
    assert checks["database"]["level"] == checks["migrations"]["level"] == "ok"
    assert PASSWORD not in output


# register


def test_register_creates_an_endpoint_and_prints_its_secret_once(sandbox: Sandbox) -> None:
    output = run("register", URL).stdout
    (made_endpoint,) = sandbox.deliveries.endpoints.values()
    assert made_endpoint.url == URL and sorted(made_endpoint.events or ()) == SUBSCRIBED and made_endpoint.enabled
    assert made_endpoint.secret in output
    again = run("register", URL).stdout
    assert "already correct" in again and made_endpoint.secret not in again
    assert len(sandbox.deliveries.endpoints) == 1


def test_rotation_names_the_old_endpoint_and_prints_json(sandbox: Sandbox) -> None:
    ((old, first),) = ((row["id"], row["secret"]) for row in json.loads(run("register", URL, "--json").stdout))
    assert first == sandbox.deliveries.endpoints[old].secret
    assert f"workos-sync endpoints delete {old} --reason" in run("register", URL, "--rotate").stdout
    again = json.loads(run("register", URL, "--json").stdout)
    assert [(row["changes"], row["secret"]) for row in again] == [([], None), ([], None)]


def test_register_prints_the_secret_under_whatever_name(sandbox: Sandbox) -> None:
    sandbox.faults.answer(
        path="/webhook_endpoints", method="POST", status=201, body=b'{"signing_secret": "whsec_once"}'
    )
    assert "whsec_once" in run("register", URL).stdout


def test_register_corrects_an_existing_endpoint(sandbox: Sandbox) -> None:
    run("register", URL)
    (registered,) = sandbox.deliveries.endpoints.values()
    registered.events, registered.enabled = ["user.created", "dsync.activated"], False
    output = run("register", URL).stdout
    assert "enabled" in output and "added organization.deleted" in output and "removed dsync.activated" in output
    assert sorted(registered.events or ()) == SUBSCRIBED and registered.enabled
    assert registered.secret not in output


def test_register_rotate_adds_a_second_endpoint(sandbox: Sandbox) -> None:
    run("register", URL)
    output = run("register", URL, "--rotate").stdout
    secrets = {each.secret for each in sandbox.deliveries.endpoints.values()}
    assert len(secrets) == 2 and sum(secret in output for secret in secrets) == 1
    assert re.search("1.*WORKOS_WEBHOOK_SECRETS.*2.*delete.*3", output, re.DOTALL)


def test_endpoints_are_listed_without_the_token_in_their_urls_and_deleted(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEBHOOK_PATH_TOKEN", "a-token-of-more-than-16-characters")
    run("register", f"{URL}/a-token-of-more-than-16-characters")
    old = sandbox.deliveries.add_endpoint("https://old.acme.example/hook", events=["user.created", "dsync.activated"])
    ours, other = report("endpoints", "list")
    assert (ours["url"], ours["here"], ours["event_types"]) == (f"{URL}/<WEBHOOK_PATH_TOKEN>", True, "as needed")
    assert (other["id"], other["here"]) == (old.id, False)
    assert "without user.deleted" in other["event_types"] and "with dsync.activated" in other["event_types"]
    assert "--yes" in run("endpoints", "delete", old.id, "--reason", "rotated", exit_code=2).stderr
    run("endpoints", "delete", old.id, "--yes", "--reason", "rotated")
    assert list(sandbox.deliveries.endpoints) == [ours["id"]]
    [row] = report("audit", "list", "--action", "delete_endpoint")
    assert (row["object_id"], row["reason"], row["details"]) == (old.id, "rotated", {"host": "old.acme.example"})


@pytest.mark.parametrize("url", ["http://sync.acme.example/webhooks/workos", "sync.acme.example", "ftp://acme.example"])
def test_register_refuses_a_url_without_https(url: str, sandbox: Sandbox) -> None:
    assert "https" in run("register", url, exit_code=2).stderr
    assert not sandbox.deliveries.endpoints


def test_register_refused_by_workos_prints_one_line(sandbox: Sandbox) -> None:
    sandbox.faults.fail(status=422, path="/webhook_endpoints", times=None)
    error = run("register", URL, exit_code=1).stderr
    assert error.count("\n") == 1 and "422" in error


@pytest.fixture
def odd_endpoint(healthy: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that changes the endpoint object in WorkOS's answers: None removes a field."""

    def change(**fields: Any) -> None:
        original = Endpoint.as_json

        def as_json(self: Endpoint, *, with_secret: bool) -> dict[str, Any]:
            shown = original(self, with_secret=with_secret) | fields
            return {name: value for name, value in shown.items() if value is not None}

        monkeypatch.setattr(Endpoint, "as_json", as_json)

    return change


def webhook_endpoint() -> dict[str, str]:
    result = CliRunner().invoke(main, ["doctor", "--json"])
    return next(check for check in json.loads(result.stdout) if check["name"] == "webhook endpoint")


@pytest.mark.parametrize(
    ("fields", "level", "saw"),
    [
        ({"status": None}, "warning", "does not report enabled"),
        ({"status": None, "enabled": True}, "ok", "enabled, with exactly"),
        ({"status": None, "enabled": False}, "failure", "disabled"),
        ({"events": None}, "warning", "does not report its event types"),
        ({"events": None, "status": None}, "warning", "enabled and its event types"),
    ],
)
def test_a_field_that_workos_does_not_report_is_unknown(
    odd_endpoint: Callable[..., None], answering: None, fields: dict[str, Any], level: str, saw: str
) -> None:
    odd_endpoint(**fields)
    found = webhook_endpoint()
    assert found["level"] == level and saw in found["saw"]
    result = run("register", URL).stdout
    assert ("WorkOS does not report" in result) is (level == "warning")


def test_a_404_of_workos_is_an_answer(healthy: Sandbox, answering: None) -> None:
    (registered,) = healthy.deliveries.endpoints.values()
    registered.enabled = False
    healthy.faults.fail(status=404, path="/webhook_endpoints/", times=None)
    error = run("register", URL, exit_code=1).stderr
    assert "WorkOS answered 404" in error and "network" not in error
    healthy.faults.fail(status=404, path="/webhook_endpoints", times=None)
    assert "WorkOS answered 404" in webhook_endpoint()["saw"]
    assert "network" not in run("register", URL, exit_code=1).stderr


def test_an_endpoint_beyond_the_pages_that_are_read_is_unknown(
    healthy: Sandbox, answering: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.webhook_endpoints.MAX_ENDPOINT_PAGES", 1)
    (registered,) = healthy.deliveries.endpoints.values()
    registered.url = "https://elsewhere.example/"
    for number in range(100):
        healthy.deliveries.add_endpoint(f"https://elsewhere.example/{number}", events=[])
    found = webhook_endpoint()
    assert found["level"] == "warning" and "none of the first 100" in found["saw"]


def test_register_warns_of_a_path_that_is_not_ours(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run("register", "https://sync.acme.example/webhooks/wrong")
    assert "warning: the path of this URL is not /webhooks/workos" in result.stderr
    monkeypatch.setenv("WEBHOOK_PATH_TOKEN", "abcdefgh01234567abcdefgh")
    result = run("register", "https://sync.acme.example/webhooks/workos/another-token-0123456789")
    assert "is not /webhooks/workos/<WEBHOOK_PATH_TOKEN>" in result.stderr and "abcdefgh" not in result.stderr


WEB_TOKEN, OTHER_TOKEN = "token-of-web-0123456789", "token-of-shell-0123456789"


@pytest.fixture
def web_with_token(redis_url: str, configured_engine: Engine) -> Iterator[str]:
    """The address of `web`, which has a WEBHOOK_PATH_TOKEN that the shell does not have."""
    settings = load_settings().model_copy(update={"webhook_path_token": SecretStr(WEB_TOKEN)})
    services = build_services(settings, redis_url, endpoint=True)
    with serving(create_app(services)) as address:
        yield f"{address}/webhooks/workos"
    services.close()


@pytest.mark.parametrize(("token", "arrives"), [(WEB_TOKEN, True), (OTHER_TOKEN, False)])
def test_register_and_doctor_ask_the_route(
    answering: None,
    healthy: Sandbox,
    web_with_token: str,
    token: str,
    arrives: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = f"{web_with_token}/{token}"
    monkeypatch.setenv("WEBHOOK_PATH_TOKEN", token)
    warning = run("register", url).stderr
    assert ("warning: the URL answers 404" in warning and "WEBHOOK_PATH_TOKEN" in warning) is not arrives
    found = webhook_endpoint()
    assert found["level"] == ("ok" if arrives else "failure")
    if not arrives:
        assert "answers 404" in found["saw"] and "WEBHOOK_PATH_TOKEN" in found["remedy"]
    assert token not in warning and token not in json.dumps(found)


@pytest.mark.parametrize("status", [200, 403, 500])
def test_doctor_trusts_the_path_if_the_route_gives_no_clear_answer(
    answering: None, healthy: Sandbox, status: int
) -> None:
    app = Flask("a firewall")
    app.get("/webhooks/workos")(lambda: ("", status))
    (registered,) = healthy.deliveries.endpoints.values()
    with serving(app) as address:
        registered.url = f"{address}/webhooks/workos"
        assert webhook_endpoint()["level"] == "ok"
    assert webhook_endpoint()["level"] == "ok", "it does not answer"


def test_a_malformed_url_at_workos_is_not_an_error(answering: None, healthy: Sandbox) -> None:
    (registered,) = healthy.deliveries.endpoints.values()
    registered.url = "https://sync.acme.example:port/webhooks/workos"
    assert webhook_endpoint()["level"] == "ok"
    assert "does not answer" in run("register", registered.url).stderr


def test_register_warns_of_a_url_that_does_not_lead_to_web(
    sandbox: Sandbox, redis_url: str, configured_engine: Engine
) -> None:
    assert "does not answer from here" in run("register", "http://localhost:1/webhooks/workos").stderr
    services = build_services(load_settings(), redis_url, endpoint=True)
    with serving(create_app(services)) as address:
        ours = f"{address}/webhooks/workos"
        assert "warning:" not in run("register", ours).stderr
    services.close()
    with serving(Flask("another")) as address:
        assert "answers 404" in run("register", f"{address}/webhooks/workos").stderr
