"""An error of a task, lane, request or hook is logged, counted and tried again, and nothing else stops."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from multiprocessing.context import ForkProcess
from typing import Any, NoReturn

import pytest
import structlog
from flask import Flask
from redis import Redis
from redis.connection import AbstractConnection
from sqlalchemy import event

from models.tables import HookDelivery
from tests.support import accept, made, post, rows, statuses
from tests.support.auto_join import apply_events, mark_as_filled
from tests.support.hooks import SECRET as HOOK_SECRET
from tests.support.hooks import follow_all
from tests.support.processes import eventually
from tests.support.stories import new_users
from webhooks.app import create_app
from worker.bootstrap import Services
from worker.cli.programs import periodic_tasks
from worker.errors import HookError
from worker.hooks.follow import Follower, follow
from worker.hooks.threads import HookThreads
from worker.metrics import COUNTS, TIMES, UNEXPECTED, Counters, Name, Place, counted
from worker.processes import clock, lane
from worker.processes.jobs import make_worker
from worker.processes.supervisor import supervise
from worker.queue.doorbell import DRAIN, HOOKS, PROVISION, REPAIR, SESSIONS
from worker.queue.heartbeat import Heartbeat, worker_states

pytestmark = pytest.mark.long

PRIVATE = "ann@acme.example"
ERRORS = [RuntimeError(PRIVATE), OSError(11, PRIVATE), ValueError(PRIVATE)]
errors = pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)

TASKS = ("redis", "heartbeat", "claim", "sweep", "schedule", "watch", "counts", "joins", "hooks", "sessions")
LANES = {
    DRAIN: ("worker.inbox.drain.Drain.__call__", "bell", True),
    REPAIR: ("worker.repair.work.Repair.work_on_all", "repair_bell", None),
    PROVISION: ("worker.provisioning.provision", "provision_bell", False),
    HOOKS: ("worker.hooks.threads.HookThreads.wake", "hooks_bell", None),
    SESSIONS: ("worker.repair.sessions.SessionRevoker.revoke_due", "sessions_bell", None),
}
"""For each lane, the function that does its work, its bell, and what the function returns when no work is left."""


@pytest.fixture
def everything(local: Callable[..., Services]) -> Services:
    """Services with every task, lane and route."""
    return local(
        auto_join="provision",
        revoke_sessions=True,
        hooks="crm=http://127.0.0.1:1/",
        hook_secrets=f"crm:{HOOK_SECRET}",
        workos_api_key="sk_test_of_nobody",
        workos_client_id="client_1",
        workos_base_url="http://127.0.0.1:1/",
        ops_tokens="ann:token-of-ann-for-pages",
        api_tokens="crm:token-of-crm-for-the-api",
        sweep_seconds=0.01,
        repair_seconds=0.01,
    )


def raising(error: BaseException) -> Callable[..., NoReturn]:
    def fail(*_: object, **__: object) -> NoReturn:
        raise error

    return fail


def reported(services: Services, logs: list[Any], place: Place) -> list[str]:
    """The names in the log of unexpected errors at a place, after a check of their contents and their number."""
    services.counters.hand_over()
    found = [line for line in logs if line["event"] == "unexpected_error" and line["place"] == place]
    assert PRIVATE not in json.dumps(logs, default=str)
    assert counted(services.redis).get(Name(UNEXPECTED, (place,)), 0) == len(found)
    return [line["name"] for line in found]


# Periodic tasks


def test_all_tasks_are_tested(everything: Services) -> None:
    assert tuple(task.name for task in periodic_tasks(everything, bool)) == TASKS
    assert LANES.keys() == lane.JOBS.keys()


@errors
@pytest.mark.parametrize("name", TASKS)
def test_a_task_that_raises_runs_again_and_stops_no_other(
    name: str, error: Exception, everything: Services, logs: list[Any]
) -> None:
    stop, ran = threading.Event(), dict.fromkeys(TASKS, 0)

    def run(task: clock.PeriodicTask) -> None:
        ran[task.name] += 1
        if min(ran.values()) >= 2:
            stop.set()
        if task.name == name:
            raise error
        task.run()

    tasks = periodic_tasks(everything, bool)
    clock.run([replace(task, run=partial(run, task), every_seconds=0.01) for task in tasks], stop, everything.counters)
    names = reported(everything, logs, Place.TASK)
    assert set(names) == {name} and len(names) == ran[name] >= 2


# Lanes


@pytest.mark.long
@errors
@pytest.mark.parametrize("name", LANES)
def test_a_lane_that_raises_does_its_next_job(
    name: str,
    error: Exception,
    everything: Services,
    logs: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    function, bell, nothing_left = LANES[name]
    ran: list[int] = []

    def succeed(*_: object, **__: object) -> bool | None:
        ran.append(1)
        return nothing_left

    monkeypatch.setattr(lane, "require_same_environment", lambda *_: None)
    at_end = ExitStack()
    stopping = threading.Event()
    if name == DRAIN:
        stopping.set()  # it would wait for events
    make_job = partial(lane.JOBS[name], everything, stopping, at_end)

    def work() -> None:
        getattr(everything, bell).ring()
        worker = make_worker(everything.redis, name, {name: make_job().run})
        worker.work(burst=True, logging_level="CRITICAL", max_jobs=1)
        assert worker.failed_job_count == 0

    with monkeypatch.context() as patch:
        patch.setattr(function, raising(error))
        work()
    assert reported(everything, logs, Place.LANE) == [name]
    monkeypatch.setattr(function, succeed)
    work()
    assert ran
    monkeypatch.undo()
    at_end.close()


@errors
def test_a_worker_process_that_fails_outside_of_jobs_ends_with_one_line(
    error: Exception, everything: Services, logs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane, "build_services", lambda *_: everything)
    monkeypatch.setattr(lane, "make_worker", raising(error))
    with structlog.contextvars.bound_contextvars(lane=DRAIN), pytest.raises(SystemExit) as ended:
        lane.work(DRAIN, everything.settings, "unused")
    assert ended.value.code == 1
    assert reported(everything, logs, Place.LANE) == [DRAIN]


# Requests


def addresses(app: Flask) -> Iterator[tuple[str, str, str]]:
    """Method, path and endpoint of each route."""
    with app.test_request_context():
        for rule in app.url_map.iter_rules():
            values: Any = dict.fromkeys(rule.arguments, "x")
            path = app.url_for(rule.endpoint, **values)
            for method in (rule.methods or set()) & {"GET", "POST"}:
                yield method, path, rule.endpoint


@errors
def test_a_request_that_raises_gets_500_and_the_next_one_is_answered(
    error: Exception, everything: Services, logs: list[Any]
) -> None:
    app = create_app(everything)
    for hooks_before in app.before_request_funcs.values():  # sign-in and the like: see test_ops and test_api
        hooks_before.clear()
    routes = list(addresses(app))
    assert len(routes) > 40
    client = app.test_client()
    for method, path, name in routes:
        before = app.view_functions[name]
        app.view_functions[name] = raising(error)
        answer = client.open(path, method=method)
        assert answer.status_code == 500 and PRIVATE not in answer.get_data(as_text=True)
        app.view_functions[name] = before
    assert reported(everything, logs, Place.REQUEST) == [name for _, _, name in routes]
    accept(client, *new_users(1))


@errors
def test_an_error_after_the_commit_is_not_the_senders(
    error: Exception, services: Services, logs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services.bell, "ring", raising(error))
    client = create_app(services).test_client()
    answer = post(client, new_users(1)[0])
    assert (answer.status_code, answer.get_json()) == (200, {"status": "accepted"})
    assert statuses(services.engine) == {"pending": 1}, "the sweep rings for it"
    assert reported(services, logs, Place.RING) == [DRAIN]


@errors
def test_metrics_without_the_verdict_are_still_served(
    error: Exception, services: Services, logs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = create_app(services).test_client()
    with monkeypatch.context() as patch:
        patch.setattr("webhooks.metrics.judge", raising(error))
        answer = client.get("/metrics")
    assert answer.status_code == 200 and "workos_sync_redis_up 1.0" in answer.get_data(as_text=True)
    assert reported(services, logs, Place.METRICS) == ["database"]
    assert 'workos_sync_unexpected_errors_total{place="metrics"} 1.0' in client.get("/metrics").get_data(as_text=True)


@errors
def test_readiness_does_not_depend_on_the_warnings(
    error: Exception, services: Services, logs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = create_app(services).test_client()
    monkeypatch.setattr("webhooks.health.judge", raising(error))
    answers = [client.get("/readyz") for _ in range(3)]
    assert [(answer.status_code, answer.get_json()) for answer in answers] == [
        (200, {"status": "ready", "warnings": None})
    ] * 3
    assert reported(services, logs, Place.READINESS) == ["warnings"], "looked for once in five seconds"


@errors
def test_a_delivery_that_the_driver_cannot_store_is_sent_again(
    error: Exception, services: Services, logs: list[Any]
) -> None:
    client = create_app(services).test_client()

    def fail(*_: object) -> None:
        raise error

    event.listen(services.inbox_engine, "do_execute", fail)
    event.listen(services.inbox_engine, "do_executemany", fail)
    answer = post(client, new_users(1)[0])
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert reported(services, logs, Place.REQUEST) == ["receive.deliver"]


# Redis


@errors
def test_an_error_within_the_redis_client_is_counted_at_its_place(
    error: Exception, services: Services, logs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, services.counters.contained(Place.TASK, "sweep"):
        patch.setattr(AbstractConnection, "send_packed_command", raising(type(error)(*error.args)))
        services.redis.ping()
    assert reported(services, logs, Place.TASK) == ["sweep"]
    [line] = [each for each in logs if each["event"] == "unexpected_error"]
    assert f"{type(error).__name__} at " in line["error"] and "in fail" in line["error"]


@errors
def test_a_failing_heartbeat_is_counted_once_and_tried_again(
    error: Exception, services: Services, logs: list[Any]
) -> None:
    states: list[Callable[[], str]] = [raising(error), raising(error), lambda: "idle"]
    report = partial(services.counters.postpone, Place.HEARTBEAT, DRAIN)
    heartbeat = Heartbeat(services.report_redis, DRAIN, lambda: states.pop(0)() if states else "idle", report)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("worker.queue.heartbeat.HEARTBEAT_SECONDS", 0.01)
        heartbeat.start()
        eventually(lambda: worker_states(services.redis, [DRAIN])[DRAIN] == ["idle"], 10)
    assert reported(services, logs, Place.HEARTBEAT) == [DRAIN]
    heartbeat.close()


FOREIGN_MEMBERS = {
    "of another program": "x",
    "not UTF-8": b"\xff",
    "like ours, with another value": f"workos-sync:worker:{DRAIN}:x",
    "of another lane": f"workos-sync:worker:{REPAIR}:x",
}


@pytest.mark.parametrize("member", FOREIGN_MEMBERS.values(), ids=FOREIGN_MEMBERS)
def test_a_foreign_worker_in_redis_is_none_of_ours(member: str | bytes, everything: Services) -> None:
    redis = everything.redis
    redis.sadd(f"workos-sync:workers:{DRAIN}", member)
    redis.set(member, b"\xff")
    client = create_app(everything).test_client()
    assert "no_worker" in client.get("/readyz").get_json()["warnings"]
    token = {"Authorization": "Bearer token-of-crm-for-the-api"}
    assert client.get("/api/v1/status", headers=token).status_code == 503, "the mirror is empty"
    assert worker_states(redis, [DRAIN])[DRAIN] == []
    assert redis.get(member) == b"\xff", "the value is not ours to delete"


# Hooks


@errors
def test_a_hook_that_cannot_be_followed_delays_no_other(
    error: Exception, services: Services, logs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    mark_as_filled(services.engine)
    took: list[Any] = []
    called = {"bad": took.append, "good": took.append}

    def send(name: str, stopping: Callable[[], bool]) -> None:
        follow(services.engine, name, called[name], 3, stopping)

    follow_all(services.engine, called, 3)
    apply_events(services.engine, [made("organization.created", id="org_1", name="Acme", domains=[])])
    run = Follower.run

    def fail_once(self: Follower) -> None:
        if self._name == "bad":
            raise error
        run(self)

    monkeypatch.setattr(Follower, "run", fail_once)
    threads = HookThreads(called, send, partial(services.counters.contained, Place.HOOK))
    threads.wake()
    eventually(lambda: len(took) == 1, 10)
    eventually(lambda: any(line["event"] == "unexpected_error" for line in logs), 10)
    threads.close()
    assert reported(services, logs, Place.HOOK) == ["bad"]


@errors
def test_a_target_that_raises_is_tried_again(error: Exception, services: Services, logs: list[Any]) -> None:
    mark_as_filled(services.engine)
    follow_all(services.engine, {"bad": raising(error)}, 3)
    apply_events(services.engine, [made("organization.created", id="org_1", name="Acme", domains=[])])
    report = partial(services.counters.report, Place.HOOK, "bad")
    follow(services.engine, "bad", raising(error), 3, report=report)
    (delivery,) = rows(services.engine, HookDelivery)
    assert (delivery["status"], delivery["attempts"]) == ("pending", 1)
    assert reported(services, logs, Place.HOOK) == ["bad"]
    [line] = [each for each in logs if each["event"] == "hook_failed"]
    assert line["error"].startswith(f"{type(error).__name__} at ")


def test_a_hook_that_refuses_is_not_unexpected(services: Services, logs: list[Any]) -> None:
    mark_as_filled(services.engine)
    refusing = raising(HookError("answered 500"))
    follow_all(services.engine, {"bad": refusing}, 3)
    apply_events(services.engine, [made("organization.created", id="org_1", name="Acme", domains=[])])
    follow(services.engine, "bad", refusing, 3, report=partial(services.counters.report, Place.HOOK, "bad"))
    assert reported(services, logs, Place.HOOK) == []
    assert [each["error"] for each in logs if each["event"] == "hook_failed"] == ["HookError: answered 500"]


# Counters


def no_more_threads(_: threading.Thread) -> NoReturn:
    raise RuntimeError("can't start new thread")


@errors
def test_the_thread_of_the_counters_goes_on(
    error: Exception, services: Services, logs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.metrics.FLUSH_SECONDS", 0.02)
    counters = Counters(services.redis)
    failed = threading.Event()

    def fail_once(*_: object) -> NoReturn:
        monkeypatch.undo()
        monkeypatch.setattr("worker.metrics.FLUSH_SECONDS", 0.02)
        failed.set()
        raise error

    monkeypatch.setattr(counters, "_send", fail_once)
    counters.add("received", "accepted", "user.created")
    assert failed.wait(5)
    wanted = {Name("received", ("accepted", "user.created")): 1.0, Name(UNEXPECTED, (Place.COUNTERS,)): 1.0}
    eventually(lambda: counted(services.redis) == wanted, 5)
    counters.close()
    assert PRIVATE not in json.dumps(logs, default=str)


def test_foreign_values_in_redis_fail_neither_counting_nor_the_metrics(services: Services, redis: Redis) -> None:
    ours = json.dumps(Name("received", ("accepted", "user.created")))
    for foreign in ("junk", "[]", '["received"]', '{"a": 1}', "3", ours):
        redis.hset(COUNTS, foreign, "not a number")
    for unreadable in (b"\xff", "[" * 100_000, '["received", ["\\ud800", "x"]]', '["received", []]', '["\\ud800", []]'):
        redis.hset(COUNTS, unreadable, "1")
    redis.hset(TIMES, '["secret_used", ["1", "2"]]', "1")
    assert create_app(services).test_client().get("/metrics").status_code == 200
    redis.delete(TIMES)
    redis.set(TIMES, "not a hash")
    client = create_app(services).test_client()
    services.counters.note_time("secret_used", "1")
    services.counters.add("received", "accepted", "user.created", number=3)
    services.counters.add("workos_calls")
    for _ in range(4):
        services.counters.hand_over()
    assert client.get("/metrics").status_code == 200
    assert counted(redis)[Name("received", ("accepted", "user.created"))] == 3
    assert counted(redis)[Name("workos_calls")] == 1


# The supervisor


@errors
def test_a_process_that_cannot_be_started_is_started_later(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    stop, start = threading.Event(), ForkProcess.start
    seen: list[BaseException] = []
    began = time.monotonic()

    def refuse_twice(self: ForkProcess) -> None:
        if len(seen) < 2:
            raise error
        start(self)
        stop.set()

    monkeypatch.setattr(ForkProcess, "start", refuse_twice)
    supervise([partial(time.sleep, 60)], stop, seen.append)
    assert seen == [error, error]
    assert time.monotonic() - began > 1.0, "with pauses"


@errors
def test_a_supervisor_that_started_nothing_stops(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    stop = threading.Event()
    monkeypatch.setattr(ForkProcess, "start", raising(error))
    supervise([partial(time.sleep, 60)], stop, lambda _: stop.set())


FAILING_PROCESS = f"""
import threading
import structlog
from worker.processes.supervisor import supervise

stop = threading.Event()

def fail():
    raise ValueError("{PRIVATE}")

def stop_after_it(_logger, _level, entry):
    if entry["event"] == "process_ended":
        stop.set()
    return entry

structlog.configure(processors=[stop_after_it, *structlog.get_config()["processors"]])
supervise([fail], stop, print)
"""
"""A program whose process raises at once. It ends when its supervisor reports that."""


def test_a_process_that_raises_ends_without_a_traceback() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", FAILING_PROCESS], capture_output=True, text=True, timeout=60, check=True
    )
    output = ended.stdout + ended.stderr
    assert "process_failed" in output and "ValueError at " in output
    assert PRIVATE not in output and "Traceback" not in output


def test_a_mistake_in_a_query_is_not_an_unavailable_database(services: Services, logs: list[Any]) -> None:
    app = create_app(services)

    @app.get("/mistake")
    def mistake() -> str:
        with services.engine.connect() as connection:
            connection.exec_driver_sql("SELECT ?")  # without its parameter
        return ""

    assert app.test_client().get("/mistake").status_code == 500
    assert len(reported(services, logs, Place.REQUEST)) == 1


def test_counts_wait_while_the_system_has_no_more_threads(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    counters = Counters(services.redis)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", no_more_threads)
        counters.add("received", "accepted", "user.created")
    counters.close()
    wanted = {Name("received", ("accepted", "user.created")): 1.0}
    assert counted(services.redis) == wanted
    counters.add("received", "accepted", "user.created")
    assert counters._thread is not None, "the next count tries again"
    counters.close()


def test_foreign_numbers_in_redis_are_not_counts(services: Services) -> None:
    services.redis.hset(COUNTS, json.dumps(Name("refused_since_valid", ("mismatch",))), "inf")
    assert counted(services.redis) == {}


def test_counts_that_are_sent_at_the_same_time_are_all_added(services: Services) -> None:
    counters = Counters(services.redis, in_background=False)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(200):
            counters.clear(Name("a"))
            counters.add("b")
            pool.submit(counters.hand_over)
            pool.submit(counters.hand_over)
    counters.hand_over()
    assert counted(services.redis)[Name("b")] == 200
