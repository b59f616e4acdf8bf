"""Hooks receive every change at least once, in order for each object."""

import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, nullcontext, suppress
from typing import Any

import psutil
import pytest
from sqlalchemy import Engine, insert, select, update

from models.database import in_transaction, read_transaction, write_transaction
from models.tables import Change, DeliveryStatus, Hook, HookDelivery, MirrorState
from models.types import db_now, db_now_plus
from tests.support import JSON, access, made, rows
from tests.support.actors import by
from tests.support.auto_join import apply_events, mark_as_filled
from tests.support.hooks import OK, SECRET, Web, dripping, follow_all, long_answer, raw_host
from tests.support.processes import eventually, piece
from tests.support.resync import quietly, resync, small_life
from worker import leases
from worker.bootstrap import Services
from worker.errors import ConfigurationError, HookError, OperatorError, UnknownIdError
from worker.hooks import follow as hooks
from worker.hooks import operate, targets
from worker.hooks.targets import WebTarget
from worker.hooks.threads import HookThreads
from worker.reports.verdict import judge
from worker.sandbox import Sandbox
from worker.settings import Settings, load_settings
from worker.workos_api.client import WorkOSClient


class Host:
    """A host that a hook calls. It keeps the messages, and raises for the objects in `fails`."""

    def __init__(self) -> None:
        self.received: list[JSON] = []
        self.fails: set[str] = set()

    def __call__(self, message: JSON) -> None:
        if message["data"]["object_id"] in self.fails:
            raise HookError("answered 503")
        self.received.append(message)

    def ids(self) -> list[int]:
        return [message["data"]["id"] for message in self.received]


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host that is called for one object after the other."""
    monkeypatch.setattr(hooks, "CONCURRENT_CALLS", 1)
    return Host()


@pytest.fixture
def follow(one_engine: Engine, host: Host) -> Callable[..., None]:
    """A function that delivers new changes to the hook."""

    def run(attempts: int = 3, **other: Any) -> None:
        follow_all(one_engine, {"host": host} | other, attempts)

    return run


def due(engine: Engine) -> None:
    """Make every delivery due."""
    in_transaction(engine, lambda tx: tx.execute(update(HookDelivery).values(due_at=db_now_plus(-1))))


def person(id: str, at: int = 0, **data: Any) -> JSON:
    return made("user.created" if at == 0 else "user.updated", at, id=id, email=f"{id}@acme.example", **data)


def waiting(engine: Engine) -> dict[int, str]:
    return {row["change_id"]: row["status"] for row in rows(engine, HookDelivery)}


def ids_of(engine: Engine, object_id: str | None = None) -> list[int]:
    return [row["id"] for row in rows(engine, Change) if object_id in (None, row["object_id"])]


def test_changes_are_delivered_once_in_order(one_engine: Engine, host: Host, follow: Callable[..., None]) -> None:
    apply_events(one_engine, [person("user_1"), person("user_2")])
    follow()
    apply_events(one_engine, [person("user_1", 2, first_name="Ann")])
    follow()
    follow()
    assert host.ids() == ids_of(one_engine)
    assert [message["type"] for message in host.received] == ["user.created", "user.created", "user.updated"]
    last = host.received[-1]
    assert last["data"]["before"]["first_name"] != last["data"]["after"]["first_name"] == "Ann"
    assert last["timestamp"] == last["data"]["at"] and last["data"]["cause"] == "event"


def test_failed_delivery_is_retried_and_others_continue(
    one_engine: Engine, host: Host, follow: Callable[..., None]
) -> None:
    host.fails = {"user_1"}
    apply_events(one_engine, [person("user_1"), person("user_2")])
    follow()
    first, second = ids_of(one_engine)
    apply_events(one_engine, [person("user_1", 2, first_name="Ann"), person("user_2", 2, first_name="Bob")])
    follow()
    assert host.ids() == [second, ids_of(one_engine, "user_2")[1]]
    assert waiting(one_engine) == dict.fromkeys(ids_of(one_engine, "user_1"), "pending")
    assert access(one_engine) == set() and len(rows(one_engine, Change)) == 4, "the mirror is not held up"
    host.fails = set()
    follow()
    assert len(host.received) == 2, "the first try again is not due yet"
    due(one_engine)
    follow()
    assert host.ids()[2:] == ids_of(one_engine, "user_1") and first == host.ids()[2]
    assert waiting(one_engine) == {}


def test_exhausted_delivery_waits_for_a_replay(one_engine: Engine, host: Host, follow: Callable[..., None]) -> None:
    host.fails = {"user_1"}
    apply_events(one_engine, [person("user_1"), person("user_1", 2, first_name="Ann")])
    for _ in range(2):
        follow(attempts=2)
        due(one_engine)
    first, second = ids_of(one_engine)
    assert waiting(one_engine) == {first: "failed", second: "pending"}
    listed = operate.deliveries(one_engine, status=DeliveryStatus.FAILED)
    assert [row["error"] for row in listed] == ["HookError: answered 503"]
    assert listed[0]["traceback"] is None and listed[0]["attempts"] == 2
    host.fails = set()
    follow()
    assert host.ids() == [second]
    assert operate.replay(one_engine, "host", None, by("ann", "why")) == 1
    follow()
    assert host.ids() == [second, first] and waiting(one_engine) == {}


def test_failed_delivery_can_be_dismissed(one_engine: Engine, host: Host, follow: Callable[..., None]) -> None:
    host.fails = {"user_1"}
    apply_events(one_engine, [person("user_1")])
    follow(attempts=1)
    with pytest.raises(OperatorError, match="no failed delivery of change 999"):
        operate.dismiss(one_engine, "host", 999, by("ann", "why"))
    with pytest.raises(UnknownIdError, match="no hook other"):
        operate.replay(one_engine, "other", None, by("ann", "why"), names=["host"])
    assert operate.dismiss(one_engine, "host", None, by("ann", "why")) == 1
    assert waiting(one_engine) == {} and operate.replay(one_engine, "host", None, by("ann", "why")) == 0


def test_each_hook_has_its_own_cursor(one_engine: Engine, host: Host, follow: Callable[..., None]) -> None:
    other = Host()
    other.fails = {"user_1"}
    apply_events(one_engine, [person("user_1"), person("user_2")])
    follow(other=other)
    assert host.ids() == ids_of(one_engine) and other.ids() == ids_of(one_engine, "user_2")


def seconds_leased(engine: Engine) -> float:
    with read_transaction(engine) as tx:
        until, now = tx.execute(select(Hook.leased_until, db_now())).one()
    assert until is not None
    return (until - now).total_seconds()


@pytest.mark.long
def test_killed_process_is_replaced_and_change_is_sent_again(
    one_engine: Engine, host: Host, follow: Callable[..., None]
) -> None:
    apply_events(one_engine, [person("user_1")])
    with piece("deadly_hook", one_engine.url.render_as_string(hide_password=False), "host") as killed:
        assert killed.wait(30) == -signal.SIGKILL
    assert 0 < seconds_leased(one_engine) < 10, "with the clock's five seconds it stays below fifteen"
    follow()
    assert host.received == [], "it is still leased"
    in_transaction(one_engine, lambda tx: tx.execute(update(Hook).values(leased_until=db_now_plus(-1))))
    follow()
    assert host.ids() == ids_of(one_engine)


def test_slow_call_keeps_lease(one_engine: Engine, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "LEASE_SECONDS", 0.6)
    monkeypatch.setattr(leases, "RENEWAL_SECONDS", 0.05)
    apply_events(one_engine, [person("user_1")])
    (first,) = ids_of(one_engine)

    class Slow(Host):
        def __call__(self, message: JSON) -> None:
            began = time.monotonic()
            eventually(lambda: time.monotonic() - began > 0.6 and seconds_leased(one_engine) > 0, 30)
            follow_all(one_engine, {"host": host}, 3)  # another process finds nothing to do
            super().__call__(message)

    slow = Slow()
    follow_all(one_engine, {"host": slow}, 3)
    assert (slow.ids(), host.received) == ([first], [])
    assert rows(one_engine, Hook)[0]["leased_until"] is None, "released at once"


def test_process_without_lease_records_nothing(one_engine: Engine, host: Host) -> None:
    """The change that it sent is sent again by the next holder."""
    apply_events(one_engine, [person("user_1")])

    class Slow(Host):
        def __call__(self, message: JSON) -> None:
            super().__call__(message)
            in_transaction(one_engine, lambda tx: tx.execute(update(Hook).values(fence=Hook.fence + 1)))

    slow = Slow()
    follow_all(one_engine, {"host": slow}, 3)
    assert slow.ids() == ids_of(one_engine)
    assert rows(one_engine, Hook)[0]["cursor"] == 0
    in_transaction(one_engine, lambda tx: tx.execute(update(Hook).values(leased_until=db_now_plus(-1))))
    follow_all(one_engine, {"host": host}, 3)
    assert host.ids() == ids_of(one_engine)


@pytest.mark.long
def test_first_backfill_sends_nothing_and_later_repairs_do(
    one_engine: Engine, host: Host, follow: Callable[..., None], sandbox: Sandbox, workos: WorkOSClient
) -> None:
    small_life(sandbox.world, 2, 2)
    apply_events(one_engine, [person("user_signed_up_meanwhile")])
    first = resync(one_engine, workos)
    assert not [row for row in rows(one_engine, Change) if row["cause_id"] != first and row["cause"] == "resync"]
    follow()
    assert [message["data"]["object_id"] for message in host.received] == ["user_signed_up_meanwhile"]
    mark_as_filled(one_engine)
    lost = next(iter(sandbox.world.memberships))
    quietly(sandbox.world, lambda: sandbox.world.delete_membership(lost))
    resync(one_engine, workos)
    follow()
    found = [m for m in host.received if m["data"]["object_id"] == lost]
    assert [(m["type"], m["data"]["cause"]) for m in found] == [("membership.deleted", "resync")]


def test_new_hook_starts_at_current_change(one_engine: Engine, host: Host, follow: Callable[..., None]) -> None:
    mark_as_filled(one_engine)
    apply_events(one_engine, [person("user_1")])
    follow()
    apply_events(one_engine, [person("user_2")])
    follow()
    assert [message["data"]["object_id"] for message in host.received] == ["user_2"]


def test_hook_overtaken_by_retention_logs_and_continues(
    one_engine: Engine, host: Host, follow: Callable[..., None]
) -> None:
    apply_events(one_engine, [person("user_1")])
    follow()
    apply_events(one_engine, [person("user_2"), person("user_3")])
    dropped = ids_of(one_engine)[1]
    in_transaction(one_engine, lambda tx: tx.execute(Change.__table__.delete().where(Change.id == dropped)))  # type: ignore[attr-defined]
    in_transaction(one_engine, lambda tx: tx.execute(update(MirrorState).values(changes_dropped_to=dropped)))
    follow()
    assert [message["data"]["object_id"] for message in host.received] == ["user_1", "user_3"]
    (row,) = operate.list_hooks(one_engine)
    assert row["error"] == f"changes up to {dropped} have been pruned" and row["behind"] == 0


def test_changes_behind_are_counted_up_to_a_limit(one_engine: Engine, follow: Callable[..., None]) -> None:
    follow()
    change = {"kind": "user", "object_id": "user_1", "after": {}, "cause": "event", "cause_id": "event_1"}
    with write_transaction(one_engine) as tx:
        tx.execute(insert(Change), [change] * (operate.MAX_COUNTED + 5))
    (row,) = operate.list_hooks(one_engine)
    assert row["behind"] == operate.MAX_COUNTED


@pytest.mark.long
def test_many_changes_are_sent_in_steps(one_engine: Engine, host: Host, follow: Callable[..., None]) -> None:
    apply_events(one_engine, [person(f"user_{n % 40}", n) for n in range(350)])
    follow()
    assert sorted(host.ids()) == ids_of(one_engine)
    received = [(message["data"]["object_id"], message["data"]["id"]) for message in host.received]
    assert sorted(received, key=lambda pair: pair[0]) == sorted(received), "in order for each object"


def test_changes_that_a_step_had_no_time_for_are_sent_next_in_order(
    one_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks, "STEP_SECONDS", 0.05)
    apply_events(one_engine, [person(f"user_{n % 3}", n, first_name=f"v{n}") for n in range(9)])
    waited: list[int] = []

    class Slow(Host):
        def __call__(self, message: JSON) -> None:
            waited.append(len(waiting(one_engine)))
            time.sleep(0.03)
            super().__call__(message)

    slow = Slow()
    follow_all(one_engine, {"host": slow}, 3)
    assert max(waited) > 0 and waiting(one_engine) == {}
    assert sorted(slow.ids()) == ids_of(one_engine)
    for n in range(3):
        mine = [m["data"]["id"] for m in slow.received if m["data"]["object_id"] == f"user_{n}"]
        assert mine == ids_of(one_engine, f"user_{n}")


def test_a_stopping_process_leaves_the_remaining_changes_to_another(one_engine: Engine, host: Host) -> None:
    apply_events(one_engine, [person(f"user_{n}") for n in range(5)])
    hooks.follow(one_engine, "host", host, 3, stopping=lambda: len(host.received) == 2)
    assert len(host.received) == 2 and len(waiting(one_engine)) == 3
    follow_all(one_engine, {"host": host}, 3)
    assert host.ids() == ids_of(one_engine)


# Over HTTP


@pytest.fixture
def web_target(web_host: Web) -> Iterator[WebTarget]:
    target = WebTarget(web_host.url, SECRET, 5.0)
    yield target
    target.close()


def test_call_is_signed_and_identified_by_change(one_engine: Engine, web_host: Web, web_target: WebTarget) -> None:
    apply_events(one_engine, [person(f"user_{n}") for n in range(30)])
    follow_all(one_engine, {"web": web_target}, 3)
    assert sorted(m["data"]["id"] for m in web_host.took) == ids_of(one_engine)
    assert {m["id"] for m in web_host.took} == {f"change_{id}" for id in ids_of(one_engine)}


@pytest.mark.parametrize("status", [301, 400, 404, 410, 500, 503])
def test_answer_other_than_2xx_is_retried_with_same_id(
    one_engine: Engine, web_host: Web, web_target: WebTarget, status: int
) -> None:
    apply_events(one_engine, [person("user_1"), person("user_1", 2, first_name="Ann")])
    web_host.answers.append(status)
    follow_all(one_engine, {"web": web_target}, 3)
    assert web_host.took == [] and web_host.tried == 1
    assert f"answered {status}" in rows(one_engine, HookDelivery)[0]["error"]
    due(one_engine)
    follow_all(one_engine, {"web": web_target}, 3)
    assert [m["data"]["id"] for m in web_host.took] == ids_of(one_engine)


def test_connection_error_hides_the_url(one_engine: Engine) -> None:
    apply_events(one_engine, [person("user_1")])
    target = WebTarget("http://127.0.0.1:1/secret-path", SECRET, 1.0)
    follow_all(one_engine, {"web": target}, 3)
    target.close()
    (row,) = rows(one_engine, HookDelivery)
    assert row["error"] == "HookError: no answer: ConnectError"


ONE_MESSAGE: JSON = {"type": "user.created", "data": {"id": 7}}
BODY = OK + b"Content-Length: 500\r\n\r\n"
ANSWERS: dict[str, tuple[Callable[[threading.Event], Iterable[bytes]], bool]] = {
    "nothing": (dripping(b"x", seconds=60), False),
    "a status by drips": (dripping(BODY), False),
    "headers by drips": (dripping(BODY[17:], at_once=OK[:17]), False),
    "headers without end": (lambda ended: iter(lambda: b"X-Long: 1\r\n" * 100, None), False),
    "one long header": (lambda ended: iter(lambda: b"x" * 1000, None), False),
    "informational answers without end": (lambda ended: iter(lambda: b"HTTP/1.1 102 P\r\n\r\n", None), False),
    "a body by drips": (dripping(b"x" * 500, at_once=BODY), True),
    "chunks by drips": (dripping(b"1\r\nx\r\n" * 99, at_once=OK + b"Transfer-Encoding: chunked\r\n\r\n"), True),
    "300 MB": (long_answer(300), True),
    "a body without end": (long_answer(None), True),
    "500 by drips": (dripping(b"x" * 500, at_once=BODY.replace(b"200 OK", b"500 No")), False),
}


@pytest.mark.long
@pytest.mark.parametrize("how", ANSWERS)
def test_a_call_ends_in_time_and_takes_little_memory_whatever_the_answer(how: str) -> None:
    answer, accepted = ANSWERS[how]
    process = psutil.Process()
    with raw_host(answer) as url, closing(WebTarget(url, SECRET, 1.5)) as target:
        before, began = process.memory_info().rss, time.monotonic()
        with nullcontext() if accepted else pytest.raises(HookError):
            target(ONE_MESSAGE)
        assert time.monotonic() - began < 8  # without a limit it would take a minute, or never end
        assert process.memory_info().rss - before < 20_000_000


def test_short_answers_keep_the_connection(web_host: Web, web_target: WebTarget, one_engine: Engine) -> None:
    apply_events(one_engine, [person("user_1"), *(person("user_1", n, first_name=f"v{n}") for n in range(2, 12))])
    follow_all(one_engine, {"web": web_target}, 3)
    assert len(web_host.took) == 11 and web_host.connections == 1


def test_a_slow_hook_delays_no_other(one_engine: Engine) -> None:
    sent: list[str] = []
    free = threading.Event()

    def follow_one(name: str, stopping: Callable[[], bool]) -> None:
        if name == "slow":
            free.wait(30)
        if name == "bad":
            raise RuntimeError("unexpected")
        sent.append(name)

    threads = HookThreads(["slow", "good", "bad"], follow_one, lambda _name: suppress(RuntimeError))
    for number in range(1, 4):
        threads.wake()
        eventually(lambda: sent.count("good") == number, 10)  # noqa: B023 - called at once
    assert "slow" not in sent
    free.set()
    eventually(lambda: sent.count("slow") == 2, 10)  # a second round for the changes made during the first
    threads.close()


# Settings


def loaded(monkeypatch: pytest.MonkeyPatch, **environment: str) -> Settings:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return load_settings()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"HOOKS": "sessions"}, "HOOKS has no URL for sessions"),
        ({"HOOKS": "a=https://host/1,a=https://host/2"}, "HOOKS has the same name twice"),
        ({"HOOKS": "a=https://host/path"}, "HOOK_SECRETS has no secret for the hook a"),
        ({"HOOKS": "a=https://host/path", "HOOK_SECRETS": "a:short"}, "HOOK_SECRETS has an invalid secret for a"),
        ({"HOOK_SECRETS": f"a:{SECRET}"}, "HOOK_SECRETS names hooks that are not in HOOKS: a"),
        ({"AUTO_JOIN": "provision"}, "WORKOS_API_KEY is not set"),
        ({"AUTO_JOIN": "yes"}, "AUTO_JOIN is not 'off', 'mirror' or 'provision'"),
    ],
)
def test_invalid_settings_are_named(monkeypatch: pytest.MonkeyPatch, given: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as caught:
        loaded(monkeypatch, **given)
    assert SECRET not in str(caught.value)


def test_a_python_function_in_hooks_is_reported_and_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    given = loaded(monkeypatch, HOOKS="old=my_app:changed, web=https://host/path", HOOK_SECRETS=f"web:{SECRET}")
    found = targets.targets(given)
    found["web"].close()
    assert list(found) == ["web"]
    assert given.python_hooks == ["old"]


def test_health_warns_about_a_python_function_in_hooks(local: Callable[..., Services]) -> None:
    services = local(hooks="old=my_app:changed")
    verdict = judge(services.engine, services.redis, services.settings)
    assert [each.text for each in verdict.conditions if each.name == "hook_unsupported"] == [
        "the hook old is a Python function and is not called: give it an https:// URL"
    ]
    assert [lane.name for lane in verdict.health.lanes] == ["drain", "repair"]
