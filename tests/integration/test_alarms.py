"""Every alert rule fires on its fault, none on a healthy system: promtool judges what /metrics really says."""

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from redis import Redis
from sqlalchemy import Engine, insert, update

from models.database import write
from models.tables import Change, Drift, Event, Hook, HookDelivery, Join, Mirror, Read, Run, Tick
from models.types import db_in, db_now
from tests.integration.alarms import RULES, firing
from tests.support import accept, apply_all, made, sign
from webhooks.app import create_app
from worker.processes.clock import CLOCK_TICK, beat
from worker.processes.jobs import make_worker
from worker.signals.doorbell import DRAIN, REPAIR
from worker.wiring import Wiring

pytestmark = pytest.mark.long  # each asks promtool
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not here (Debian: apt-get install prometheus)"
)


@pytest.fixture
def wiring(
    build_wiring: Callable[..., Wiring], make_database: Callable[[str], str], redis_url: str
) -> Iterator[Wiring]:
    """A healthy system: filled, resynced, with a worker on each lane and a clock."""
    given = {"workos_api_key": "sk_test", "workos_client_id": "client_test"}
    wiring = build_wiring(database_url=make_database("sqlite"), **given)
    engine = wiring.engine
    run = {"id": "run1", "task": "resync", "requested_by": "clock", "status": "done", "finished_at": db_now()}
    write(engine, lambda tx: tx.execute(insert(Run).values(run)))
    filled = {"backfill_from": db_in(-9000), "backfilled_at": db_now(), "last_resync_at": db_now()}
    write(engine, lambda tx: tx.execute(update(Mirror).values(filled | {"complete_to": db_now()})))
    beat(engine)
    with ExitStack() as ended:
        for lane in (DRAIN, REPAIR):
            worker = make_worker(ended.enter_context(Redis.from_url(redis_url)), lane, {})
            worker.register_birth()  # type: ignore[no-untyped-call]  # RQ has no types for it
            ended.callback(worker.register_death)
        yield wiring


@pytest.fixture
def door(wiring: Wiring) -> FlaskClient:
    return create_app(wiring).test_client()


def change(engine: Engine, statement: Any) -> None:
    write(engine, lambda tx: tx.execute(statement))


def failed(wiring: Wiring, door: FlaskClient) -> None:
    accept(door, made("user.created") | {"data": None})
    apply_all(wiring.engine)


def overdue(wiring: Wiring, door: FlaskClient) -> None:
    accept(door, made("user.created"))
    change(wiring.engine, update(Event).values(received_at=db_in(-300)))


def silent(wiring: Wiring, door: FlaskClient) -> None:
    accept(door, made("user.created"))
    apply_all(wiring.engine)
    change(wiring.engine, update(Event).values(webhook_at=db_in(-7200), received_at=db_in(-7200)))
    rows = [{"id": f"event_{n}", "type": "user.updated", "source": "events_api"} for n in range(3)]
    times = {"api_at": db_in(-3600), "occurred_at": db_in(-3700), "received_at": db_in(-3600), "status": "done"}
    write(wiring.engine, lambda tx: tx.execute(insert(Event).values(times), rows))


def refused(number: int, **how: Any) -> Callable[[Wiring, FlaskClient], None]:
    def post_badly(wiring: Wiring, door: FlaskClient) -> None:
        for _ in range(number):
            header = {"WorkOS-Signature": sign(b"{}", **how)}
            assert door.post("/webhooks/workos", data=b"{}", headers=header).status_code == 401

    return post_badly


def gaps(wiring: Wiring, _door: FlaskClient, number: int = 12) -> None:
    rows = [{"id": f"event_{n}", "type": "user.updated", "source": "events_api"} for n in range(number)]
    # From before the last webhook: single ones were lost, and others came.
    times = {"api_at": db_in(-3600), "occurred_at": db_in(-9999999), "status": "done"}
    write(wiring.engine, lambda tx: tx.execute(insert(Event).values(times), rows))


def drifted(number: int, finding: str, action: str) -> Callable[[Wiring, FlaskClient], None]:
    def seed(wiring: Wiring, _door: FlaskClient) -> None:
        row = {"run_id": "run1", "kind": "user", "finding": finding, "action": action}
        many = [row | {"object_id": f"user_{n}"} for n in range(number)]
        write(wiring.engine, lambda tx: tx.execute(insert(Drift), many))

    return seed


def on(statement: Callable[[], Any]) -> Callable[[Wiring, FlaskClient], None]:
    return lambda wiring, _door: change(wiring.engine, statement())


def conflict(wiring: Wiring, door: FlaskClient) -> None:
    accept(door, made("organization.created"), made("organization.created", id="org_other"))
    for number, owner in enumerate((made("organization.created")["data"]["id"], "org_other")):
        ids = {"id": f"org_domain_{number}", "organization_id": owner}
        accept(door, made("organization_domain.created", domain="acme.example", state="verified", **ids))
    apply_all(wiring.engine)


def unmapped(wiring: Wiring, door: FlaskClient) -> None:
    accept(door, made("organization_membership.created", role={"slug": "owner"}, roles=[{"slug": "owner"}]))
    apply_all(wiring.engine)


def limited(wiring: Wiring, _door: FlaskClient) -> None:
    wiring.counters.add("workos_limited", number=30)


def behind(wiring: Wiring, _door: FlaskClient) -> None:
    row = {"kind": "user", "object_id": "user_1", "after": {}, "cause": "event", "cause_id": "event_1"}
    write(wiring.engine, lambda tx: tx.execute(insert(Change), [row] * 1001))
    change(wiring.engine, insert(Hook).values(name="sessions", cursor=0))


def hook_failed(wiring: Wiring, _door: FlaskClient) -> None:
    change(wiring.engine, insert(Hook).values(name="sessions", cursor=1))
    about = {"kind": "user", "object_id": "user_1", "status": "failed"}
    change(wiring.engine, insert(HookDelivery).values(hook="sessions", change_id=1, **about))


def no_worker(wiring: Wiring, _door: FlaskClient) -> None:
    for key in wiring.redis.smembers(f"rq:workers:workos-sync:{DRAIN}"):
        wiring.redis.srem(f"rq:workers:workos-sync:{DRAIN}", key)


FAULTS: dict[str, Callable[[Wiring, FlaskClient], None]] = {
    "NoWorker": no_worker,
    "NoClock": on(lambda: update(Tick).where(Tick.name == CLOCK_TICK).values(at=db_in(-300))),
    "Lagging": overdue,
    "EventsFailed": failed,
    "Silent": silent,
    "SignaturesRefused": refused(25, secret="another"),
    "RefusedForTheirTime": refused(10, at=1_000_000_000),
    "Gaps": gaps,
    "WithheldDeletions": drifted(3, "extra", "withheld"),
    "ResyncLate": on(lambda: update(Run).values(created_at=db_in(-99 * 3600), finished_at=db_in(-98 * 3600))),
    "ResyncFailed": on(lambda: update(Run).values(status="failed", error="/organizations: 500")),
    "Drift": drifted(25, "different", "repaired"),
    "RateLimited": limited,
    "AutoJoinConflict": conflict,
    "UnmappedRole": unmapped,
    "HookFailed": hook_failed,
    "HookBehind": behind,
    "JoinFailed": on(
        lambda: insert(Join).values(
            organization_id="org_1", user_id="user_1", state="undone", cause="event", cause_id="event_1"
        )
    ),
    "UnreadObjects": on(
        lambda: insert(Read).values(kind="user", object_id="user_1", reason="a test", attempts=5, error="no answer")
    ),
    "Backfilling": on(lambda: update(Mirror).values(backfilled_at=None)),
}
ELSEWHERE = {"Down", "DatabaseDown", "RedisDown"}


def metrics(door: FlaskClient) -> str:
    answer = door.get("/metrics")
    assert answer.status_code == 200
    return answer.get_data(as_text=True)


@needs_promtool
def test_nothing_fires_while_all_is_well(door: FlaskClient, wiring: Wiring, tmp_path: Path) -> None:
    accept(door, made("organization.created"), made("user.created"))
    apply_all(wiring.engine, None)
    assert firing(tmp_path, metrics(door), metrics(door)) == set()


@needs_promtool
@pytest.mark.parametrize("name", FAULTS)
def test_each_rule_fires_on_its_fault_and_no_other_does(
    name: str, door: FlaskClient, wiring: Wiring, tmp_path: Path
) -> None:
    before = metrics(door)
    FAULTS[name](wiring, door)
    also = {"Silent": {"WorkosSyncGaps"}}.get(name, set())
    assert firing(tmp_path, before, metrics(door)) - also == {f"WorkosSync{name}"}


@needs_promtool
def test_gaps_that_close_raise_no_alarm(door: FlaskClient, wiring: Wiring, tmp_path: Path) -> None:
    gaps(wiring, door, 40)
    before = metrics(door)
    change(wiring.engine, update(Event).where(Event.id < "event_3").values(webhook_at=db_now()))
    after = metrics(door)
    assert "workos_sync_gaps 40.0" in before and "workos_sync_gaps 17.0" in after
    assert firing(tmp_path, before, after) == set()


@needs_promtool
def test_each_server_away_has_its_rule(
    door: FlaskClient, wiring: Wiring, build_wiring: Callable[..., Wiring], tmp_path: Path
) -> None:
    well = metrics(door)
    assert firing(tmp_path, well, "", up=False) == {"WorkosSyncDown"}
    away = build_wiring(database_url="sqlite:////proc/nowhere/all.db")
    assert "WorkosSyncDatabaseDown" in firing(tmp_path, well, metrics(create_app(away).test_client()))
    dumb = build_wiring(
        database_url=wiring.settings.database_url,
        redis_url="unix:///nowhere.sock",
        workos_api_key="sk_test",
        workos_client_id="client_test",
    )
    assert firing(tmp_path, well, metrics(create_app(dumb).test_client())) == {"WorkosSyncRedisDown"}


def test_every_rule_has_a_fault_here() -> None:
    named = {line.split("WorkosSync")[1] for line in RULES.read_text().splitlines() if "- alert:" in line}
    assert named == FAULTS.keys() | ELSEWHERE


def test_rules_and_dashboard_ask_only_for_metrics_there_are(door: FlaskClient, wiring: Wiring) -> None:
    unmapped(wiring, door)
    failed(wiring, door)
    drifted(1, "extra", "withheld")(wiring, door)
    behind(wiring, door)
    told = metrics(door)
    there = set(re.findall(r"^(workos_sync_\w+)", told, re.MULTILINE))
    for file in ("alerts.yml", "grafana.json"):
        asked = set(re.findall(r"\bworkos_sync_\w+", (RULES.parent / file).read_text()))
        assert asked and asked <= there, asked - there
