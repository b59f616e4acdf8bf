"""`status`, `doctor`, the pages, the API, metrics and `/readyz` say the same, and what they say is right."""

import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis
from sqlalchemy import Engine, insert, update

from models.tables import Change, Hook, HookDelivery, MirrorState, Run
from models.types import db_now, db_now_plus
from tests.support import SECRET, accept, apply_all, fake_workers, made, post, sign
from tests.support.actors import by
from tests.support.cli import report
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
from tests.support.ops import TOKEN, form_token, sign_in
from tests.support.statements import statements
from tests.support.tail import fresh
from webhooks.app import create_app
from worker.bootstrap import CLAIM, Services, build_services, database_id
from worker.mirror.auto_join_policy import refresh_counts
from worker.processes.clock import heartbeat
from worker.queue.doorbell import REPAIR
from worker.repair.resync.resync import start
from worker.reports.conditions import CONDITIONS
from worker.settings import load_settings
from worker.times import duration

pytestmark = pytest.mark.long

API = {"Authorization": f"Bearer {'b' * 40}"}
WRONG_SECRET = "whsec_wrong_0123456789abcdef"
COLORS = {"good": "ok", "warn": "warning", "bad": "problem"}


@pytest.fixture(autouse=True)
def _surroundings(
    set_environment: Callable[..., None], make_database: Callable[[str], str], restored_logging: None
) -> None:
    set_environment(
        DATABASE_URL=make_database("sqlite"),
        WORKOS_WEBHOOK_SECRETS=SECRET,
        OPS_TOKENS=f"ann:{TOKEN}",
        API_TOKENS=f"product:{'b' * 40}",
        WORKOS_API_KEY="sk_test_0123456789abcdefghij",
        WORKOS_CLIENT_ID="client_test",
        WORKOS_BASE_URL="http://127.0.0.1:1",
        NOTIFY="json://127.0.0.1:1",
    )


@pytest.fixture
def services(redis_url: str) -> Iterator[Services]:
    """A filled mirror, resynced an hour ago, with a clock, and a worker on each lane."""
    services = build_services(load_settings(), redis_url, endpoint=True)
    run = {"id": "run1", "task": "resync", "requested_by": "clock", "status": "done", "finished_at": db_now_plus(-60)}
    execute(services.engine, insert(Run).values(run))
    filled = {"backfill_from": db_now_plus(-9000), "backfilled_at": db_now(), "last_resync_at": db_now_plus(-60)}
    execute(services.engine, update(MirrorState).values(filled))
    fresh(services.engine)
    heartbeat(services.engine)
    with fake_workers.registered(redis_url), fake_workers.answering(redis_url):
        yield services
    services.close()


@pytest.fixture
def engine(services: Services) -> Engine:
    return services.engine


@pytest.fixture
def endpoint(services: Services) -> FlaskClient:
    """A client of the application that is signed in to the pages."""
    client = create_app(services).test_client()
    assert sign_in(client).status_code == 302
    return client


@pytest.fixture
def working(endpoint: FlaskClient, engine: Engine) -> FlaskClient:
    """As `endpoint`; its secret has verified a delivery."""
    accept(endpoint, made("organization.created"))
    apply_all(engine)
    return endpoint


def active_conditions(endpoint: FlaskClient) -> dict[str, str]:
    """The conditions that the API reports: name → severity."""
    endpoint.get("/metrics")  # stores the counts now
    shown = endpoint.get("/api/v1/status", headers=API).get_json()
    return {each["name"]: each["severity"] for each in shown["conditions"]}


def timeless(line: str) -> str:
    """A line about a condition, without its durations: they grow between two reports."""
    return re.sub(r"(\d+ (d|h|min|s)\b ?)+", "…", line)


def metrics(endpoint: FlaskClient) -> dict[str, float]:
    families = text_string_to_metric_families(endpoint.get("/metrics").get_data(as_text=True))
    return {f"{s.name}{sorted(s.labels.items())}": s.value for family in families for s in family.samples}


def refuse(endpoint: FlaskClient, number: int = 1, secret: str = WRONG_SECRET, **how: Any) -> None:
    for _ in range(number):
        header = {"WorkOS-Signature": sign(b"{}", secret, **how)}
        assert endpoint.post("/webhooks/workos", data=b"{}", headers=header).status_code == 401


def change(engine: Engine, seconds_ago: float) -> None:
    row = {"kind": "user", "object_id": "user_1", "after": {}, "cause": "event", "cause_id": "event_1"}
    execute(engine, insert(Change).values(row | {"at": db_now_plus(-seconds_ago)}))


def hook_down(services: Services, _endpoint: FlaskClient) -> None:
    """A hook whose receiver has been down for eleven attempts; the twelfth would be the last."""
    change(services.engine, 3000)
    execute(services.engine, insert(Hook).values(name="sessions", cursor=1))
    about = {"kind": "user", "object_id": "user_1", "status": "pending", "attempts": 11}
    execute(services.engine, insert(HookDelivery).values(hook="sessions", change_id=1, **about))


def no_worker(services: Services, _endpoint: FlaskClient) -> None:
    for key in services.redis.scan_iter(f"workos-sync:worker*:{REPAIR}*"):
        services.redis.delete(key)


withheld = drifted(1, "extra", "withheld")

WITHOUT_TILE = {
    *("backfilling", "join_failed", "no_clock", "no_worker", "queued_without_worker", "sessions_not_revoked"),
    *("role_map_withheld", "certificate_expires", "notify_failed", "redis_claimed"),
    "unread_objects",
}
"""Conditions that no tile of the overview is about."""
FAULTS: dict[str, tuple[str, Fault]] = {
    "failed_events": ("problem", failed),
    "hook_failed": ("problem", hook_failed),
    "hook_lagging": ("warning", hook_down),
    "domain_conflicts": ("warning", conflict),
    "unmapped_roles": ("warning", unmapped),
    "certificate_expires": ("problem", certificate(-1)),
    "role_map_withheld": ("warning", role_map_withheld),
    "no_worker": ("problem", no_worker),
    "queued_without_worker": ("problem", queued),
    "no_clock": ("problem", clock_stopped),
    "redis_claimed": ("problem", redis_claimed),
    "missed_webhooks": ("warning", gaps),
    "drift": ("warning", drifted(25, "different", "repaired")),
    "withheld_deletions": ("problem", withheld),
    "resync_failed": ("warning", resync_failed),
    "resync_late": ("problem", resync_late),
    "signatures_refused": ("warning", lambda _services, endpoint: refuse(endpoint, 3)),
    "time_refused": ("warning", lambda _services, endpoint: refuse(endpoint, secret=SECRET, at=1_000_000_000)),
    "unread_objects": ("warning", unread),
    "join_failed": ("warning", joined("failed")),
    "backfilling": ("problem", backfilling),
    "bound_missed": ("problem", bound_missed),
    "tail_slowed": ("warning", tail_slowed),
    "sessions_not_revoked": ("problem", sessions_not_revoked),
    "notify_failed": ("warning", notify_failed),
}


def test_no_condition_holds_in_a_healthy_installation(working: FlaskClient) -> None:
    assert active_conditions(working) == {}
    assert report("status")["severity"] == "ok"
    assert 'class="card verdict good"' in working.get("/ops/").get_data(as_text=True)
    shown = metrics(working)
    assert {value for name, value in shown.items() if name.startswith("workos_sync_problem")} == {0.0}
    assert shown["workos_sync_trusted[]"] == 1


@pytest.mark.parametrize("name", FAULTS)
def test_all_reports_agree_on_a_condition(name: str, working: FlaskClient, services: Services) -> None:
    severity, seed = FAULTS[name]
    seed(services, working)
    measured = metrics(working)
    status = report("status", exit_code=1)
    everything = {each["name"]: each for each in status["conditions"]}
    assert everything.keys() == {name} and everything[name]["severity"] == status["severity"] == severity
    line = f"{everything[name]['sentence']}: {everything[name]['remedy']}"
    assert (status["problems"], status["warnings"]) == (([line], []) if severity == "problem" else ([], [line]))

    api = working.get("/api/v1/status", headers=API)
    assert {each["name"]: each["severity"] for each in api.get_json()["conditions"]} == {name: severity}
    trusted = severity == "warning" or name in ("hook_failed", "sessions_not_revoked", "certificate_expires")
    assert (api.status_code, api.get_json()["trusted"], api.get_json()["reasons"]) == (
        200 if trusted else 503,
        trusted,
        [] if trusted else api.get_json()["problems"],
    )

    page = working.get("/ops/").get_data(as_text=True)
    [color] = re.findall(r'class="card verdict (\w+)"', page)
    assert COLORS[color] == severity
    assert ("not trustworthy" in page) is not trusted
    tiles = {COLORS[found] for found in re.findall(r'<div class="(good|warn|bad)"><dt>', page)}
    assert tiles == (set() if name in WITHOUT_TILE else {severity})

    held = {key for key, value in measured.items() if key.startswith("workos_sync_problem") and value}
    assert held == {f"workos_sync_problem[('name', '{name}'), ('severity', '{severity}')]"}
    assert measured["workos_sync_trusted[]"] == trusted

    rows = {row["name"]: row for row in report("doctor", exit_code=1)}
    row = rows[name.replace("_", " ")]
    assert row["level"] == {"problem": "failure", "warning": "warning"}[severity]
    assert timeless(f"{row['saw']}: {row['remedy']}") == timeless(line)
    assert working.get("/readyz").get_json()["warnings"] == [name]


def test_a_semicolon_separates_conditions_only() -> None:
    """In the sentence of the condition that explains them."""
    assert [each.name for each in CONDITIONS if ";" in each.sentence + each.notice] == []


def test_conditions_link_to_pages_that_exist(working: FlaskClient) -> None:
    adapter = working.application.url_map.bind("localhost")
    for condition in CONDITIONS:
        path = re.split(r"[?#]", condition.page.format(run="run1", id="user_1", connection_id="conn_1"))[0]
        assert adapter.match(path, method="GET"), condition.name


# Refused deliveries


def test_a_wrong_secret_is_a_problem_at_once_and_ends_with_a_valid_delivery(endpoint: FlaskClient) -> None:
    refuse(endpoint, 141)
    assert active_conditions(endpoint) == {"signatures_refused": "problem"}
    (problem,) = report("status", exit_code=1)["problems"]
    assert "141 deliveries were refused because of the signature since the last valid one" in problem
    assert "WORKOS_WEBHOOK_SECRETS" in problem
    assert "Mirror is not trustworthy" in endpoint.get("/ops/").get_data(as_text=True)
    accept(endpoint, made("organization.created"))
    assert "signatures_refused" not in active_conditions(endpoint)


def test_a_secret_changed_to_a_wrong_one_is_a_problem(working: FlaskClient, monkeypatch: Any, redis_url: str) -> None:
    monkeypatch.setenv("WORKOS_WEBHOOK_SECRETS", WRONG_SECRET)
    changed = build_services(load_settings(), redis_url, endpoint=True)
    client = create_app(changed).test_client()
    refuse(client, 20, SECRET)
    changed.close()
    assert report("status", exit_code=1)["severity"] == "problem"


def test_an_outsider_alone_cannot_turn_a_working_installation_red(working: FlaskClient, redis: Redis) -> None:
    refuse(working, 50, at=1_000_000_000)
    refuse(working, 50)
    for _ in range(50):
        assert working.post("/webhooks/workos", data=b"{}").status_code == 401
        assert post(working, b"{}", "/webhooks/elsewhere").status_code == 404
    assert active_conditions(working) == {"signatures_refused": "warning", "unknown_path": "warning"}
    redis.flushdb()  # what proves that the secret is right survives Redis
    refuse(working, 50)
    held = active_conditions(working)
    assert held["signatures_refused"] == "warning"


def test_a_report_without_the_secret_knows_that_web_has_the_right_one(
    working: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(working)
    working.get("/metrics")
    monkeypatch.setenv("WORKOS_WEBHOOK_SECRETS", "")
    assert report("status", exit_code=1)["severity"] == "warning"


def test_the_time_of_a_delivery_that_is_not_well_signed_means_nothing(working: FlaskClient) -> None:
    refuse(working, at=1_000_000_000)
    assert active_conditions(working) == {"signatures_refused": "warning"}
    rows = report("doctor", exit_code=1)  # WorkOS cannot be reached in this test
    levels = {row["name"]: row["level"] for row in rows}
    assert levels["signatures refused"] == "warning" and "time refused" not in levels


def test_refused_deliveries_are_a_problem_if_the_events_api_shows_that_webhooks_are_missing(
    working: FlaskClient, engine: Engine
) -> None:
    refuse(working)
    stop_webhooks(engine, last=300, api=60)
    assert active_conditions(working) == {"signatures_refused": "problem"}


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/webhooks/wrong", "/webhooks/..."),
        ("/webhooks/workos/secret-token", "/webhooks/workos/..."),
        ("/", "/..."),
        ("/secret-token/x", "/..."),
    ],
)
def test_deliveries_to_unknown_paths_are_counted_and_logged(
    path: str, shown: str, working: FlaskClient, logs: list[Any]
) -> None:
    for _ in range(30):
        assert post(working, made("user.created"), path).status_code == 404
    assert [line["path"] for line in logs if line["event"] == "path_unknown"] == [shown], "once in ten seconds"
    assert metrics(working)["workos_sync_webhooks_refused_total[('reason', 'path')]"] == 30
    assert active_conditions(working) == {"unknown_path": "warning"}
    assert "30 deliveries were sent to a path that does not exist" in report("status", exit_code=1)["warnings"][0]


def test_posts_without_a_signature_to_unknown_paths_are_not_deliveries(working: FlaskClient) -> None:
    for path in ("/webhooks/wrong", "/wp-login.php"):
        assert working.post(path, data=b"{}").status_code == 404
    assert active_conditions(working) == {}


def test_deliveries_refused_by_address_are_seen(redis_url: str, monkeypatch: Any, services: Services) -> None:
    monkeypatch.setenv("WEBHOOK_ALLOWED_IPS", "198.51.100.7")
    restricted = build_services(load_settings(), redis_url, endpoint=True)
    client = create_app(restricted).test_client()
    assert client.post("/webhooks/workos", data=b"{}").status_code == 403, "not counted: it has no signature"
    assert post(client, made("user.created")).status_code == 403
    restricted.close()
    (problem,) = report("status", exit_code=1)["problems"]
    assert "1 delivery was refused because of the sender's address" in problem and "WEBHOOK_ALLOWED_IPS" in problem


# Redis


def test_a_replica_is_named(working: FlaskClient, redis: Redis) -> None:
    redis.execute_command("REPLICAOF", "127.0.0.1", "1")  # type: ignore[no-untyped-call]  # redis-py has no types for it
    try:
        held = active_conditions(working)
        status = report("status", exit_code=1)
    finally:
        redis.execute_command("REPLICAOF", "NO", "ONE")  # type: ignore[no-untyped-call]  # redis-py has no types for it
    assert held == {"redis_replica": "problem"}
    assert "not the primary" in status["problems"][0] and "point REDIS_URL to the primary" in status["problems"][0]


def test_a_redis_that_answers_late_is_not_away(working: FlaskClient, redis: Redis) -> None:
    redis.execute_command("CLIENT", "PAUSE", "700", "ALL")  # type: ignore[no-untyped-call]  # redis-py has no types for it
    assert active_conditions(working) == {}


def test_workers_of_another_database_count_for_nothing(working: FlaskClient, services: Services) -> None:
    assert report("status")["workers"] == 1
    redis_claimed(services, working)
    status = report("status", exit_code=1)
    assert (status["workers"], status["severity"]) == (None, "problem")
    assert "not known: Redis belongs to another database" in working.get("/ops/").get_data(as_text=True)
    services.redis.set(CLAIM, database_id(services.engine))
    assert report("status")["workers"] == 1


# Unknown values


def test_numbers_that_were_never_counted_are_not_known(working: FlaskClient, services: Services) -> None:
    report_before = working.get("/api/v1/status", headers=API).get_json()
    assert (report_before["missing_joins"], report_before["workspaces_without_admin"]) == (None, None)
    assert "workos_sync_missing_joins[]" not in metrics(working)
    assert "not known yet" in working.get("/ops/").get_data(as_text=True)
    refresh_counts(services.engine)
    counted = report("status")
    assert (counted["missing_joins"], counted["workspaces_without_admin"]) == (0, 0)
    assert "counted " in working.get("/ops/").get_data(as_text=True)


def test_without_an_api_key_it_is_not_known_whether_a_webhook_is_overdue(
    local: Callable[..., Services], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WORKOS_API_KEY", "WORKOS_CLIENT_ID"):
        monkeypatch.delenv(name)
    without = local(ops_tokens=f"ann:{TOKEN}")
    client = create_app(without).test_client()
    assert sign_in(client).status_code == 302
    accept(client, made("organization.created"))
    page = client.get("/ops/").get_data(as_text=True)
    assert "normal" not in page and "not known whether one is overdue" in page


def test_resync_without_a_worker_is_queued(working: FlaskClient, services: Services) -> None:
    no_worker(services, working)
    answer = working.post("/ops/resync", data={"csrf_token": form_token(working.get("/ops/"))})
    page = working.get(answer.headers["Location"]).get_data(as_text=True)
    assert "queued; no worker is running" in page and '<span class="badge queued">queued</span>' in page
    assert "not known yet" in page and "None found so far." in page and "<dd>none" not in page


def test_running_and_failed_resyncs_never_say_no_drift(services: Services) -> None:
    run_id = start(services.engine, by("ann"))
    shown = report("runs", "show", run_id)
    assert (shown["findings"], shown["compared"], shown["queued"]) == (None, [0, None], True)
    ended = {"status": "failed", "finished_at": db_now(), "error": "/organizations: 500", "done": 3, "total": 40}
    execute(services.engine, update(Run).where(Run.id == run_id).values(ended))
    shown = report("runs", "show", run_id)
    assert (shown["findings"], shown["compared"]) == (None, [3, 40])


def test_drift_of_a_failed_resync_is_not_known(working: FlaskClient, engine: Engine) -> None:
    execute(engine, update(Run).values(status="failed", error="/organizations: 500"))
    assert not [name for name in metrics(working) if name.startswith("workos_sync_drift")]
    assert "not known: the resync failed" in working.get("/ops/").get_data(as_text=True)


# Probes


def test_readyz_makes_one_probe(working: FlaskClient, services: Services) -> None:
    working.get("/readyz")
    with statements(services.engine) as read, statements(services.inbox_engine) as written:
        assert working.get("/readyz").status_code == 200
    assert read == [] and [statement.startswith("INSERT INTO events") for statement in written] == [True]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59, "59 s"), (61, "1 min 1 s"), (timedelta(days=2, hours=3).total_seconds(), "2 d 3 h")],
)
def test_durations_have_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_withheld_deletion_that_an_event_made_is_not_reported(services: Services, endpoint: FlaskClient) -> None:
    withheld(services, endpoint)
    assert "withheld_deletions" in active_conditions(endpoint)
    accept(endpoint, made("user.deleted", 2, id="user_0"))
    apply_all(services.engine)
    assert "withheld_deletions" not in active_conditions(endpoint)
