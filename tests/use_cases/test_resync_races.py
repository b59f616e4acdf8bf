"""Events, crashes and frozen workers during a resync: newer state wins, and deleted objects stay deleted."""

import threading
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from itertools import count
from random import Random
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import Engine, select, update

from models.database import in_transaction, open_engine, read_transaction
from models.tables import Event, Listing, Read, Run
from models.types import db_now
from tests.support import JSON, differences, mirrored, rows
from tests.support.actors import by
from tests.support.processes import eventually
from tests.support.resync import (
    CLIENT_ID,
    Between,
    Clock,
    catch_up_with,
    changes,
    client_of,
    continue_run,
    deliver,
    expire_lease,
    found,
    live,
    make_reads_due,
    quietly,
    resync,
    run_row,
    small_life,
)
from worker import leases
from worker.bootstrap import MAX_CONNECTIONS
from worker.errors import LeaseLostError
from worker.kinds import KINDS
from worker.leases import Lease
from worker.repair.reads import work_due
from worker.repair.resync import resync as resync_module
from worker.repair.resync.resync import Resync, start
from worker.runs import lease
from worker.sandbox import Sandbox, World, play, populate
from worker.workos_api.bucket import Buckets
from worker.workos_api.client import WorkOSClient, open_client

pytestmark = pytest.mark.long

SEEDS = range(4)


class Life:
    """Random operations whose events reach the inbox. Some are late, some are lost."""

    def __init__(self, engine: Engine, world: World, seed: int, *, loss: float = 0.0) -> None:
        self._engine, self._world, self._loss = engine, world, loss
        self._random = Random(seed)
        self._lock = threading.Lock()
        self._late: list[JSON] = []
        self._sent = len(world.events)
        self._number = seed * 1_000_000

    def go_on(self, _what: str = "") -> None:
        """Do a few operations; apply their events, except for those that are late."""
        with self._lock:
            self._number += 1
            play(self._world, self._random.randint(1, 4), companies=4, seed=self._number)
            new = self._new_events()
            waiting = [event for event in new if self._random.random() < 0.3]
            come = [event for event in self._late if self._random.random() < 0.3]
            self._late = [event for event in self._late if event not in come] + waiting
            deliver(self._engine, [*(event for event in new if event not in waiting), *come])

    def _new_events(self) -> list[JSON]:
        with self._world.lock:
            new = self._world.events[self._sent :]
            self._sent = len(self._world.events)
        return [event for event in new if self._random.random() >= self._loss]

    def settle(self) -> None:
        """Deliver the late events."""
        with self._lock:
            deliver(self._engine, self._new_events() + self._late)
            self._late = []


def revived(engine: Engine) -> set[str]:
    """Objects that a final delete event deleted and that are still live here."""
    deleted = (row for row in rows(engine, Event) if row["type"].endswith(".deleted"))
    deleted_ids = {row["object_id"] for row in deleted if KINDS[row["kind"]].delete_is_final}
    return deleted_ids & set().union(*live(engine).values())


def before_and_after(
    sandbox: Sandbox, redis: Redis, happens: Callable[[str], object], after: Callable[[str], object] | None = None
) -> Between:
    sandbox.on_request = lambda _method, path, _query: happens(path)
    return Between(client_of(sandbox, redis), after or happens)


@pytest.fixture
def one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """One call at a time, so that a seed reproduces the interleaving."""
    monkeypatch.setattr(resync_module, "CONCURRENT_CALLS", 1)


def lived_in(engine: Engine, sandbox: Sandbox, seed: int, *, lost: float) -> None:
    """Fill a mirror that has missed the share `lost` of the events."""
    random = Random(seed)
    play(sandbox.world, 250, companies=4, seed=seed)
    deliver(engine, (event for event in sandbox.world.events if random.random() >= lost))


def resync_during_events(engine: Engine, sandbox: Sandbox, redis: Redis, seed: int) -> None:
    """Resync while events arrive before and after every call, then check that nothing is lost or outdated."""
    lived_in(engine, sandbox, seed, lost=0.1)
    life = Life(engine, sandbox.world, seed)
    with closing(before_and_after(sandbox, redis, life.go_on)) as between:
        resync(engine, between)
    sandbox.on_request = None
    life.settle()
    assert differences(engine, sandbox.world.truth()) == []
    assert revived(engine) == set()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.usefixtures("one_at_a_time")
def test_events_at_every_boundary_converge(one_engine: Engine, sandbox: Sandbox, redis: Redis, seed: int) -> None:
    resync_during_events(one_engine, sandbox, redis, seed)


def test_events_during_parallel_calls_converge(both_engines: Engine, sandbox: Sandbox, redis: Redis) -> None:
    resync_during_events(both_engines, sandbox, redis, seed=1)


@pytest.mark.long
@pytest.mark.timeout(240)
def test_webhooks_during_large_resync_converge(
    make_database: Callable[[str], str], sandbox: Sandbox, redis: Redis
) -> None:
    """As at a first start: the mirror is empty, and listed objects change during the resync."""
    world = sandbox.world
    populate(world, organizations=2000, members=1)
    calls, random = count(), Random(1)
    undelivered: list[JSON] = []
    world.subscribe(undelivered.append)
    lock = threading.Lock()

    def happens(_what: str) -> None:
        with lock:
            number = next(calls)
            if number % 20 or len(world.events) >= 2000:
                return
            play(world, 20, companies=2000, seed=number)
            for table, delete in ((world.memberships, world.delete_membership), (world.users, world.delete_user)):
                delete(random.choice(list(table)))
            late = random.random() < 0.2  # and what is late comes after what follows it
            deliver(engine, [] if late else [undelivered.pop() for _ in range(len(undelivered))])

    engine = open_engine(make_database("postgresql"), pool_size=MAX_CONNECTIONS)
    with closing(Between(client_of(sandbox, redis), happens)) as between:
        resync(engine, between)
    assert len(world.events) >= 2000
    deliver(engine, undelivered)
    assert differences(engine, world.truth()) == []
    assert revived(engine) == set()
    engine.dispose()


@pytest.mark.parametrize("seed", [4])
@pytest.mark.usefixtures("one_at_a_time")
def test_next_resync_finds_changes_lost_during_resync(
    one_engine: Engine, sandbox: Sandbox, redis: Redis, workos: WorkOSClient, seed: int
) -> None:
    lived_in(one_engine, sandbox, seed, lost=0.1)
    life = Life(one_engine, sandbox.world, seed, loss=0.3)
    with closing(before_and_after(sandbox, redis, life.go_on)) as between:
        resync(one_engine, between)
    sandbox.on_request = None
    life.settle()
    resync(one_engine, workos)
    assert differences(one_engine, sandbox.world.truth()) == []
    assert found(one_engine, resync(one_engine, workos)) == {}


# One object, one moment

ACTS: dict[str, Callable[[World], object]] = {
    "a delete": lambda w: w.delete_membership(next(iter(w.memberships))),
    "a change": lambda w: w.update_membership(next(iter(w.memberships)), role="admin"),
    "a deactivation": lambda w: w.deactivate_membership(next(iter(w.memberships))),
    "the end of the user": lambda w: w.delete_user(next(iter(w.users))),
    "the end of the workspace": lambda w: w.delete_organization(next(iter(w.organizations))),
    "a newcomer": lambda w: w.create_membership(next(iter(w.organizations)), w.create_user("new@new.example")["id"]),
}


@pytest.mark.parametrize(
    "place",
    [
        "organizations",
        "user_management/users",
        "user_management/organization_memberships",
        "user_management/users/{id}",
    ],
)
@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
@pytest.mark.usefixtures("one_at_a_time")
def test_event_between_answer_and_write_wins(
    one_engine: Engine, sandbox: Sandbox, redis: Redis, act: Callable[[World], object], place: str
) -> None:
    world = sandbox.world
    small_life(world, 2, 2)
    catch_up_with(one_engine, world)
    quietly(world, lambda: world.update_membership(next(iter(world.memberships)), role="admin"))
    quietly(world, lambda: world.delete_membership(list(world.memberships)[3]))
    [first, *_] = world.users
    world.users[first] = {**world.users[first], "last_name": "Read by id"}
    acted: list[int] = []

    def happens(what: str) -> None:
        if what == place.format(id=first) and not acted:
            known = len(world.events)
            act(world)
            acted.append(len(world.events) - known)
            deliver(one_engine, world.events[known:])

    with closing(Between(client_of(sandbox, redis), happens)) as between:
        resync(one_engine, between)
    assert len(acted) == 1 and acted[0] > 0
    assert differences(one_engine, world.truth()) == []
    assert revived(one_engine) == set()


def test_object_that_arrived_during_resync_is_still_read(both_engines: Engine, redis: Redis) -> None:
    with Sandbox(clock=Clock()) as sandbox, closing(client_of(sandbox, redis)) as workos:
        acme = sandbox.world.create_organization("Acme")
        sandbox.world.create_membership(acme["id"], sandbox.world.create_user("ann@acme.example")["id"])
        deliver(both_engines, [event for event in sandbox.world.events if event["event"] != "organization.created"])
        resync(both_engines, workos)
        sandbox.world.update_organization(acme["id"], name="Acme Rockets")
        deliver(both_engines, sandbox.world.events[-1:])
        make_reads_due(both_engines)
        work_due(both_engines, workos, lambda: False)
        assert differences(both_engines, sandbox.world.truth()) == []
        assert rows(both_engines, Read) == []


def test_event_in_same_second_as_listing_is_read_again(both_engines: Engine, redis: Redis) -> None:
    """WorkOS reports the time of an answer in whole seconds, so the order is unknown within one second."""
    with Sandbox(clock=Clock()) as sandbox, closing(client_of(sandbox, redis)) as workos:
        acme = sandbox.world.create_organization("Acme")
        resync(both_engines, workos)
        sandbox.world.update_organization(acme["id"], name="Acme Rockets")
        deliver(both_engines, sandbox.world.events)
        work_due(both_engines, workos, lambda: False)
        assert differences(both_engines, sandbox.world.truth()) == []
        assert rows(both_engines, Read) == []


# Workers that die


class DiedError(BaseException):
    """Simulates kill -9 within the test's process."""


def die_at(call: int) -> Callable[[str], None]:
    calls = iter(range(1, 10**6))

    def happens(_what: str) -> None:
        if next(calls) == call:
            raise DiedError

    return happens


@pytest.mark.parametrize("at_once", [1, 8])
def test_killed_resync_resumes_at_any_call(
    one_engine: Engine, sandbox: Sandbox, redis: Redis, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(resync_module, "CONCURRENT_CALLS", at_once)
    world = sandbox.world
    populate(world, organizations=2, members=110)
    with closing(client_of(sandbox, redis)) as workos:
        resync(one_engine, workos)
        with world.silently():
            for user in list(world.users)[:5]:
                world.delete_user(user)
        # Organizations, memberships, users, roles, permissions, connections, invitations, and the five by id.
        needed = 1 + 2 * 2 + 3 + 1 + 1 + 1 + 1 + 5
        for call in range(1, needed + 1, 1 if at_once == 1 else 5):
            run_id = start(one_engine, by("test"), dry_run=True)
            sandbox.calls.clear()
            with pytest.raises(DiedError):
                continue_run(one_engine, Between(workos, die_at(call)), run_id)
            expire_lease(one_engine, run_id)
            assert start(one_engine, by("test"), dry_run=True) == run_id
            assert continue_run(one_engine, workos, run_id)
            assert needed < sandbox.calls.total() <= needed + at_once
            assert len(found(one_engine, run_id)) == 5


def more_calls_than(sandbox: Sandbox, number: int) -> bool:
    return sandbox.calls.total() > number


def test_stopped_resync_repeats_no_page(one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient) -> None:
    populate(sandbox.world, organizations=3, members=110)
    run_id = start(one_engine, by("test"))
    stops = 0
    while not continue_run(one_engine, workos, run_id, partial(more_calls_than, sandbox, sandbox.calls.total())):
        stops += 1
        assert stops < 50
    assert stops > 1
    assert sandbox.calls.total() == 1 + 3 * 2 + 4 + 1 + 1 + 1 + 1
    [run] = [row for row in rows(one_engine, Run) if row["id"] == run_id]
    assert run["calls"] == sandbox.calls.total()
    assert differences(one_engine, sandbox.world.truth()) == []


# Workers that freeze


@pytest.fixture
def frozen_and_successor(both_engines: Engine, workos: WorkOSClient) -> Callable[[str], list[type[BaseException]]]:
    """A function that freezes a worker before it uses an answer, finishes the run elsewhere, and wakes it."""

    def play_out(where: str) -> list[type[BaseException]]:
        frozen, wake = threading.Event(), threading.Event()
        ends: list[type[BaseException]] = []

        def freeze(what: str) -> None:
            if what.startswith(where) and not frozen.is_set():
                frozen.set()
                assert wake.wait(30)

        run_id = start(both_engines, by("test"))
        between = Between(workos, freeze)

        def work() -> None:
            with lease(both_engines, run_id) as held:
                assert held is not None
                try:
                    Resync(both_engines, between, held).work()
                except LeaseLostError as error:
                    ends.append(type(error))

        first = threading.Thread(target=work)
        first.start()
        assert frozen.wait(30)
        expire_lease(both_engines, run_id)
        assert continue_run(both_engines, workos, run_id)
        before = mirrored(both_engines), changes(both_engines), rows(both_engines, Run), rows(both_engines, Listing)
        wake.set()
        first.join(30)
        after = mirrored(both_engines), changes(both_engines), rows(both_engines, Run), rows(both_engines, Listing)
        assert before == after
        return ends

    return play_out


@pytest.mark.parametrize(
    "where",
    ["organizations", "user_management/users", "user_management/organization_memberships"],
)
def test_frozen_worker_writes_nothing_after_losing_run(
    both_engines: Engine, sandbox: Sandbox, frozen_and_successor: Any, where: str
) -> None:
    world = sandbox.world
    small_life(world, 2, 2)
    catch_up_with(both_engines, world)
    user = next(iter(world.users))
    world.users[user] = {**world.users[user], "last_name": "Read by id"}
    assert frozen_and_successor(where) == [LeaseLostError]
    assert differences(both_engines, world.truth()) == []


def test_worker_that_lost_its_run_during_read_writes_nothing(
    both_engines: Engine, sandbox: Sandbox, frozen_and_successor: Any
) -> None:
    world = sandbox.world
    small_life(world, 2, 2)
    catch_up_with(both_engines, world)
    user = next(iter(world.users))
    world.users[user] = {**world.users[user], "last_name": "Read by id"}
    assert frozen_and_successor(f"user_management/users/{user}") == [LeaseLostError]
    assert differences(both_engines, world.truth()) == []


def seconds_leased(engine: Engine, run_id: str) -> float:
    """For how long the run's lease still holds, by the database's clock."""
    with read_transaction(engine) as tx:
        until, now = tx.execute(select(Run.leased_until, db_now()).where(Run.id == run_id)).one()
    assert until is not None
    return (until - now).total_seconds()


def test_heartbeat_keeps_lease(both_engines: Engine, workos: WorkOSClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that takes longer than the lease does not let another worker take the run over."""
    monkeypatch.setattr(leases, "RENEWAL_SECONDS", 0.05)
    monkeypatch.setattr(leases, "LEASE_SECONDS", 0.6)
    run_id = start(both_engines, by("test"))
    began = time.monotonic()
    others: list[Lease | None] = []

    def wait_for_the_lease_to_pass(_what: str) -> None:
        eventually(lambda: time.monotonic() - began > 0.6 and seconds_leased(both_engines, run_id) > 0, 20)
        with lease(both_engines, run_id) as other:
            others.append(other)

    assert continue_run(both_engines, Between(workos, wait_for_the_lease_to_pass), run_id)
    assert set(others) == {None}
    assert run_row(both_engines, run_id)["fence"] == 1


def test_redis_outage_leaves_run_resumable(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient, tmp_path: Any
) -> None:
    small_life(sandbox.world, 1, 1)
    run_id = start(one_engine, by("test"))
    with Redis.from_url(f"unix://{tmp_path}/none.sock") as away:
        lost = open_client(sandbox.api_key, CLIENT_ID, sandbox.base_url, Buckets(away, 1.0))
        with closing(lost), pytest.raises(RedisError):
            continue_run(one_engine, lost, run_id)
    assert continue_run(one_engine, workos, run_id)
    assert differences(one_engine, sandbox.world.truth()) == []


def test_expired_listing_cursor_restarts_listing(one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient) -> None:
    populate(sandbox.world, organizations=1, members=250)
    run_id = start(one_engine, by("test"))
    sandbox.faults.truncate("/user_management/users$", 3, status=422)
    sandbox.faults.fail("/organizations$", query=r"limit=1\b", status=422, times=None)  # WorkOS seems to be away
    assert not continue_run(one_engine, workos, run_id)
    sandbox.faults.clear()
    sandbox.faults.fail("/user_management/users$", status=400, times=1)
    assert continue_run(one_engine, workos, run_id)
    assert differences(one_engine, sandbox.world.truth()) == []


def test_finished_run_cannot_be_worked_on(one_engine: Engine, workos: WorkOSClient) -> None:
    run_id = resync(one_engine, workos)
    with lease(one_engine, run_id) as held:
        assert held is None
    in_transaction(one_engine, lambda tx: tx.execute(update(Run).where(Run.id == run_id).values(leased_until=None)))
    with lease(one_engine, run_id) as held:
        assert held is None
