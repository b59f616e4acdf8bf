"""`doctor` and `register`: what an installation lacks, and how to fix it."""

import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from freezegun import freeze_time
from redis import Redis
from sqlalchemy import Engine, create_engine, insert, update

from models.database import in_transaction
from models.tables import Event, Mirror, Run, Tick
from models.types import db_now, db_now_plus
from tests.support import SECRET, accept, fake_workers, made
from tests.support.catalog import drop_schema
from tests.support.cli import run
from tests.support.resync import CLIENT_ID, settings_of
from tests.support.sandbox import Sandbox
from webhooks.app import create_app
from worker.bootstrap import build_services
from worker.kinds import SUBSCRIBED
from worker.processes.clock import heartbeat
from worker.queue.doorbell import DRAIN, REPAIR
from worker.repair.schedule import CLOCK_TICK
from worker.settings import load_settings

URL = "https://sync.acme.example/webhooks/workos"


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
    bound = filled | {"complete_to": db_now(), "client_id": CLIENT_ID}
    in_transaction(configured_engine, lambda tx: tx.execute(update(Mirror).values(bound)))
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


def statement(make: Callable[[], Any]) -> Callable[..., object]:
    return lambda healthy, engine, redis, monkeypatch: in_transaction(engine, lambda tx: tx.execute(make()))


def endpoint(**values: Any) -> Callable[..., None]:
    def change(healthy: Sandbox, *_: object) -> None:
        (registered,) = healthy.deliveries.endpoints.values()
        for name, value in values.items():
            setattr(registered, name, value)

    return change


def no_workers(healthy: Sandbox, engine: Engine, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    redis.delete(f"rq:workers:workos-sync:{DRAIN}", f"rq:workers:workos-sync:{REPAIR}")


def gone(healthy: Sandbox, *_: object) -> None:
    healthy.deliveries.endpoints.clear()


def another_environment(healthy: Sandbox, engine: Engine, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    in_transaction(engine, lambda tx: tx.execute(update(Mirror).values(client_id="client_other")))


FAULTS: dict[str, tuple[Callable[..., object], str, str]] = {
    "the database is away": (setting("DATABASE_URL", "sqlite:////proc/nowhere/all.db"), "database", "DATABASE_URL"),
    "it is not migrated": (
        lambda healthy, engine, redis, monkeypatch: drop_schema(engine),
        "migrations",
        "workos-sync migrate",
    ),
    "Redis is away": (setting("REDIS_URL", "unix:///nowhere.sock"), "redis", "REDIS_URL"),
    "no secret": (setting("WORKOS_WEBHOOK_SECRETS", ""), "webhook secret", "register"),
    "no key": (
        lambda healthy, engine, redis, monkeypatch: [
            monkeypatch.delenv(n) for n in ("WORKOS_API_KEY", "WORKOS_CLIENT_ID")
        ],
        "WorkOS key",
        "WORKOS_API_KEY",
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
    in_transaction(
        configured_engine,
        lambda tx: tx.execute(update(Event).values(webhook_at=db_now_plus(-7200), received_at=db_now_plus(-7200))),
    )
    rows = [{"id": f"event_{n}", "type": "user.updated", "source": "events_api"} for n in range(3)]
    times = {
        "api_at": db_now_plus(-3600),
        "occurred_at": db_now_plus(-3700),
        "received_at": db_now_plus(-3600),
        "status": "done",
    }
    in_transaction(configured_engine, lambda tx: tx.execute(insert(Event).values(times), rows))
    assert "reachable" in wrong()["silent"]["remedy"]


def test_weak_tokens_are_a_warning(answering: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPS_TOKENS", "ann:short")
    monkeypatch.delenv("API_TOKENS")
    checks = {check["name"]: check for check in json.loads(run("doctor", "--json").stdout)}
    assert checks["OPS_TOKENS"]["level"] == checks["API_TOKENS"]["level"] == "warning"
    assert "short: ann" in checks["OPS_TOKENS"]["saw"]


def test_postgresql_is_ok(
    healthy: Sandbox, answering: None, make_database: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = make_database("postgresql")
    monkeypatch.setenv("DATABASE_URL", url)
    checks = {check["name"]: check for check in json.loads(run("doctor", "--json", exit_code=1).stdout)}
    assert checks["database"]["level"] == checks["migrations"]["level"] == "ok"
    password = create_engine(url).url.password
    assert not password or password not in json.dumps(checks["database"])


# register


def test_register_creates_an_endpoint_and_prints_its_secret_once(sandbox: Sandbox) -> None:
    output = run("register", URL).stdout
    (made_endpoint,) = sandbox.deliveries.endpoints.values()
    assert made_endpoint.url == URL and sorted(made_endpoint.events or ()) == SUBSCRIBED and made_endpoint.enabled
    assert made_endpoint.secret in output
    again = run("register", URL).stdout
    assert "already correct" in again and made_endpoint.secret not in again
    assert len(sandbox.deliveries.endpoints) == 1


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


@pytest.mark.parametrize("url", ["http://sync.acme.example/webhooks/workos", "sync.acme.example", "ftp://acme.example"])
def test_register_refuses_a_url_without_https(url: str, sandbox: Sandbox) -> None:
    assert "https" in run("register", url, exit_code=2).stderr
    assert not sandbox.deliveries.endpoints


def test_register_refused_by_workos_prints_one_line(sandbox: Sandbox) -> None:
    sandbox.faults.fail(status=422, path="/webhook_endpoints", times=None)
    error = run("register", URL, exit_code=1).stderr
    assert error.count("\n") == 1 and "422" in error
