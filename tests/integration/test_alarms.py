"""Every alert rule fires on its fault and none on a healthy system. promtool evaluates the output of /metrics."""

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import insert, update

from models.database import in_transaction
from models.tables import Change, Event, Hook, MirrorState, Run
from models.types import db_now, db_now_plus
from tests.support import accept, apply_all, fake_workers, made, post, sign
from tests.support.conditions import (
    Fault,
    backfilling,
    bound_missed,
    certificate,
    clock_stopped,
    conflict,
    drifted,
    execute,
    failed,
    gaps,
    hook_failed,
    joined,
    notify_failed,
    on,
    queued,
    redis_claimed,
    resync_failed,
    resync_late,
    role_map_withheld,
    sessions_not_revoked,
    stop_webhooks,
    tail_slowed,
    unmapped,
    unread,
)
from tests.support.promtool import RULES, firing
from tests.support.tail import fresh
from webhooks.app import create_app
from worker.bootstrap import Services
from worker.mirror.auto_join_policy import refresh_counts
from worker.processes.clock import heartbeat

pytestmark = pytest.mark.long  # each runs promtool
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian: apt-get install prometheus)"
)


@pytest.fixture
def services(
    build_test_services: Callable[..., Services], make_database: Callable[[str], str], redis_url: str
) -> Iterator[Services]:
    """A healthy system: filled, resynced, with a worker on each lane and a clock."""
    given = {"workos_api_key": "sk_test", "workos_client_id": "client_test", "notify": "json://127.0.0.1:1"}
    services = build_test_services(database_url=make_database("sqlite"), **given)
    engine = services.engine
    run = {"id": "run1", "task": "resync", "requested_by": "clock", "status": "done", "finished_at": db_now()}
    in_transaction(engine, lambda tx: tx.execute(insert(Run).values(run)))
    filled = {"backfill_from": db_now_plus(-9000), "backfilled_at": db_now(), "last_resync_at": db_now()}
    in_transaction(engine, lambda tx: tx.execute(update(MirrorState).values(filled)))
    fresh(engine)
    heartbeat(engine)
    with fake_workers.registered(redis_url):
        yield services


@pytest.fixture
def endpoint(services: Services) -> FlaskClient:
    return create_app(services).test_client()


def overdue(services: Services, endpoint: FlaskClient) -> None:
    accept(endpoint, made("user.created"))
    execute(services.engine, update(Event).values(received_at=db_now_plus(-300)))


def silent(services: Services, endpoint: FlaskClient) -> None:
    accept(endpoint, made("user.created"))
    apply_all(services.engine)
    stop_webhooks(services.engine)


def refused(number: int, **how: Any) -> Fault:
    def post_invalid(services: Services, endpoint: FlaskClient) -> None:
        for _ in range(number):
            header = {"WorkOS-Signature": sign(b"{}", **how)}
            assert endpoint.post("/webhooks/workos", data=b"{}", headers=header).status_code == 401

    return post_invalid


def limited(services: Services, _endpoint: FlaskClient) -> None:
    services.counters.add("workos_limited", number=30)


def behind(services: Services, _endpoint: FlaskClient) -> None:
    row = {"kind": "user", "object_id": "user_1", "after": {}, "cause": "event", "cause_id": "event_1"}
    in_transaction(services.engine, lambda tx: tx.execute(insert(Change), [row] * 1001))
    execute(services.engine, insert(Hook).values(name="sessions", cursor=0))


def after_a_delivery(fault: Fault) -> Fault:
    """The fault, after one delivery was valid."""

    def seed(services: Services, endpoint: FlaskClient) -> None:
        accept(endpoint, made("organization.created"))
        apply_all(services.engine)
        fault(services, endpoint)

    return seed


def lost(_services: Services, endpoint: FlaskClient) -> None:
    assert post(endpoint, made("user.created"), "/webhooks/elsewhere").status_code == 404


def refused_by_address(services: Services, _endpoint: FlaskClient) -> None:
    settings = services.settings.model_copy(update={"webhook_allowed_ips": ("198.51.100.7",)})
    restricted = create_app(replace(services, settings=settings)).test_client()
    assert post(restricted, made("user.created")).status_code == 403


def no_worker(services: Services, _endpoint: FlaskClient) -> None:
    fake_workers.forget(services.redis)


FAULTS: dict[str, Fault] = {
    "NoWorker": no_worker,
    "RedisClaimed": redis_claimed,
    "NoClock": clock_stopped,
    "QueuedWithoutWorker": queued,
    "Overdue": overdue,
    "BoundMissed": bound_missed,
    "TailSlowed": tail_slowed,
    "FailedEvents": failed,
    "Silent": silent,
    "SignaturesRefused": refused(25, secret="another"),
    "SignaturesRefusedWarning": after_a_delivery(refused(25, secret="another")),
    "TimeRefused": refused(10, at=1_000_000_000),
    "TimeRefusedWarning": after_a_delivery(refused(10, at=1_000_000_000)),
    "AddressRefused": refused_by_address,
    "AddressRefusedWarning": after_a_delivery(refused_by_address),
    "UnknownPath": lost,
    "UnknownPathWarning": after_a_delivery(lost),
    "MissedWebhooks": gaps,
    "WithheldDeletions": drifted(3, "extra", "withheld"),
    "ResyncLate": resync_late,
    "ResyncFailed": resync_failed,
    "Drift": drifted(25, "different", "repaired"),
    "RateLimited": limited,
    "DomainConflicts": conflict,
    "UnmappedRoles": unmapped,
    "RoleMapWithheld": role_map_withheld,
    "CertificateExpires": certificate(-1),
    "CertificateExpiresWarning": certificate(10),
    "SessionsNotRevoked": sessions_not_revoked,
    "HookFailed": hook_failed,
    "HookLagging": behind,
    "HookMissed": on(lambda: insert(Hook).values(name="sessions", cursor=0, error="retention deleted changes")),
    "JoinUndone": joined("undone"),
    "JoinFailed": joined("failed"),
    "UnreadObjects": unread,
    "Backfilling": backfilling,
    "NotifyFailed": notify_failed,
}
TESTED_APART = {"Down", "DatabaseDown", "RedisAway", "RedisReplica", "HookUnsupported"}


def metrics(endpoint: FlaskClient) -> str:
    answer = endpoint.get("/metrics")
    assert answer.status_code == 200
    return answer.get_data(as_text=True)


@needs_promtool
def test_no_rule_fires_on_a_healthy_system(endpoint: FlaskClient, services: Services, tmp_path: Path) -> None:
    accept(endpoint, made("organization.created"), made("user.created"))
    apply_all(services.engine, None)
    assert firing(tmp_path, metrics(endpoint), metrics(endpoint)) == set()


@needs_promtool
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_fires_its_rule_and_no_other(
    name: str, endpoint: FlaskClient, services: Services, tmp_path: Path
) -> None:
    before = metrics(endpoint)
    FAULTS[name](services, endpoint)
    assert firing(tmp_path, before, metrics(endpoint)) == {f"WorkosSync{name}"}


@needs_promtool
def test_gaps_of_the_past_fire_no_rule(endpoint: FlaskClient, services: Services, tmp_path: Path) -> None:
    gaps(services, endpoint, 40)
    execute(services.engine, update(Event).values(api_at=db_now_plus(-9000)))
    after = metrics(endpoint)
    assert "workos_sync_gaps 40.0" in after
    assert firing(tmp_path, after, after) == set()


@needs_promtool
def test_a_python_function_in_hooks_fires_its_rule(endpoint: FlaskClient, services: Services, tmp_path: Path) -> None:
    before = metrics(endpoint)
    settings = services.settings.model_copy(update={"hooks": {"old": "my_app:changed"}})
    after = metrics(create_app(replace(services, settings=settings)).test_client())
    assert firing(tmp_path, before, after) == {"WorkosSyncHookUnsupported"}


@needs_promtool
def test_a_replica_fires_its_rule(endpoint: FlaskClient, services: Services, tmp_path: Path) -> None:
    before = metrics(endpoint)
    services.redis.execute_command("REPLICAOF", "127.0.0.1", "1")  # type: ignore[no-untyped-call]  # redis-py has no types for it
    try:
        after = metrics(endpoint)
    finally:
        services.redis.execute_command("REPLICAOF", "NO", "ONE")  # type: ignore[no-untyped-call]  # redis-py has no types for it
    assert firing(tmp_path, before, after) == {"WorkosSyncRedisReplica"}


@needs_promtool
def test_an_unreachable_server_fires_its_rule(
    endpoint: FlaskClient, services: Services, build_test_services: Callable[..., Services], tmp_path: Path
) -> None:
    healthy = metrics(endpoint)
    assert firing(tmp_path, healthy, "", up=False) == {"WorkosSyncDown"}
    without_database = build_test_services(database_url="sqlite:////proc/nowhere/all.db")
    assert "WorkosSyncDatabaseDown" in firing(tmp_path, healthy, metrics(create_app(without_database).test_client()))
    without_redis = build_test_services(
        database_url=services.settings.database_url,
        redis_url="unix:///nowhere.sock",
        workos_api_key="sk_test",
        workos_client_id="client_test",
    )
    assert firing(tmp_path, healthy, metrics(create_app(without_redis).test_client())) == {"WorkosSyncRedisAway"}


def test_every_rule_is_tested() -> None:
    named = {line.split("WorkosSync")[1] for line in RULES.read_text().splitlines() if "- alert:" in line}
    assert named == FAULTS.keys() | TESTED_APART


def test_rules_and_dashboard_use_only_metrics_that_exist(endpoint: FlaskClient, services: Services) -> None:
    unmapped(services, endpoint)
    failed(services, endpoint)
    drifted(1, "extra", "withheld")(services, endpoint)
    behind(services, endpoint)
    refresh_counts(services.engine)
    exported = set(re.findall(r"^(workos_sync_\w+)", metrics(endpoint), re.MULTILINE))
    for file in ("alerts.yml", "grafana.json"):
        used = set(re.findall(r"\bworkos_sync_\w+", (RULES.parent / file).read_text()))
        assert used and used <= exported, used - exported
