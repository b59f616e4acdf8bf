"""The first start, the environment a database belongs to, and the clock that keeps the repairs going."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from random import Random
from typing import Any

import pytest
from click.testing import CliRunner, Result
from redis import Redis
from sqlalchemy import Engine, update
from sqlalchemy import event as hooks

from models.database import in_transaction
from models.tables import Change, Event, Mirror, Run, RunStatus, Task, Tick
from models.types import db_now_plus
from models.views import mirror_status
from tests.support import JSON, apply_all, differences, rows
from tests.support.resync import CLIENT_ID, Clock, client_of, deliver, settings_of, small_life
from tests.support.sandbox import Knobs, Sandbox, populate
from tests.support.sandbox.world import World
from tests.support.stories import store
from worker.cli import main
from worker.decision.payload import parse_time
from worker.errors import ConfigurationError, WorkOSUnavailableError
from worker.inbox.drain import Policy, drain
from worker.kinds import SUBSCRIBED
from worker.processes.clock import PeriodicTask
from worker.processes.clock import run as run_clock
from worker.queue.doorbell import DRAIN, REPAIR, Doorbell
from worker.repair.catch_up import catch_up, update_complete_to
from worker.repair.environment import bind
from worker.repair.resync.resync import start
from worker.repair.schedule import needs_repair, schedule, watch
from worker.repair.work import Repair
from worker.settings import Settings
from worker.workos_api.client import WorkOSClient

OTHER_KEY = "sk_test_other"


def settings(**given: Any) -> Settings:
    named: dict[str, Any] = {"workos_api_key": "sk_test", "workos_client_id": CLIENT_ID, "catch_up_lag_seconds": 3.0}
    return Settings(_env_file=None, **(named | given))


@pytest.fixture
def bell(redis: Redis) -> Doorbell:
    return Doorbell(redis, DRAIN)


@pytest.fixture
def repair_bell(redis: Redis) -> Doorbell:
    return Doorbell(redis, REPAIR)


def status(engine: Engine) -> JSON:
    return rows(engine, mirror_status)[0]


def mirror(engine: Engine) -> JSON:
    return rows(engine, Mirror)[0]


def runs(engine: Engine, task: Task) -> list[JSON]:
    return [row for row in rows(engine, Run) if row["task"] == task]


# First start


def recent(world: World, since: Any) -> set[str]:
    """What the events of a world since a time are about: ids, and names of domains."""
    words: set[str] = set()
    for event in world.events:
        at = parse_time(event["created_at"])
        if at and at >= since:
            data = event["data"].get("organization_domain", event["data"])
            words |= {str(data[name]) for name in ("id", "organization_id", "user_id", "domain") if data.get(name)}
    return words


def wrong(engine: Engine, world: World) -> list[str]:
    """What of the mirror is wrong as of when it says it is right: what changed since then may be either way."""
    with world.lock:
        told = status(engine)
        found, touched = differences(engine, world.truth()), recent(world, told["complete_to"])
    return [line for line in found if not any(word in line for word in touched)]


class LiveEnvironment:
    """A full environment where life goes on between any two calls: most webhooks come, some are lost."""

    def __init__(self, engine: Engine, sandbox: Sandbox, clock: Clock, seed: int) -> None:
        self.states: list[str] = []
        self.problems: list[BaseException] = []
        self._engine, self._sandbox, self._clock, self._random = engine, sandbox, clock, Random(seed)
        self._told: list[JSON] = []
        populate(sandbox.world, organizations=30, members=5, seed=seed)
        sandbox.world.subscribe(self._told.append)
        sandbox.on_request = self._between_calls

    def look(self) -> None:
        """What `mirror_status` says must be so."""
        self.states.append(status(self._engine)["state"])
        if self.states[-1] == "current":
            assert wrong(self._engine, self._sandbox.world) == []

    def _between_calls(self, *_: object) -> None:
        try:
            self._go_on()
            self.look()
        except BaseException as problem:
            self.problems.append(problem)
            raise

    def _go_on(self) -> None:
        random, sandbox = self._random, self._sandbox
        self._clock.goes_on(seconds=random.random())
        sandbox.play(random.randrange(4), companies=30, seed=random.randrange(10**6))
        with sandbox.world.lock:
            brought = [self._told.pop(0) for _ in range(random.randrange(len(self._told) + 1))]
        deliver(self._engine, (event for event in brought if random.random() > 0.1))


@pytest.mark.long
@pytest.mark.parametrize("seed", [1, 2])
def test_a_first_start_on_a_full_environment_under_live_events_is_never_wrong(
    both_engines: Engine, redis: Redis, bell: Doorbell, seed: int
) -> None:
    engine, clock, lag = both_engines, Clock(), timedelta(seconds=10)
    chosen = settings(catch_up_lag_seconds=lag.total_seconds())
    knobs = Knobs(hold_back=5)
    with (
        Sandbox(seed=seed, knobs=knobs, clock=clock) as sandbox,
        closing(client_of(sandbox, redis)) as workos,
    ):
        life = LiveEnvironment(engine, sandbox, clock, seed)
        bind(engine, workos, chosen)
        life.look()
        catch_up(engine, workos, lag=lag)
        life.look()
        for _ in range(40):
            schedule(engine, chosen)
            Repair(engine, workos, chosen, bell).all()
            life.look()
            apply_all(engine)
            watch(engine, bell)
            life.look()
            if life.states[-1] == "current":
                break
        assert not life.problems, life.problems
        assert life.states[0] == "backfilling" and life.states[-1] == "current"
        assert life.states == sorted(life.states), "it never goes back"
        # And when the world stands still, all of it arrives.
        sandbox.on_request = None
        clock.goes_on(seconds=30)
        catch_up(engine, workos)
        apply_all(engine)
        assert differences(engine, sandbox.world.truth()) == []


def test_a_catch_up_before_the_first_resync_makes_nothing_current(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient, bell: Doorbell
) -> None:
    with sandbox.world.silently():
        small_life(sandbox.world)
    bind(one_engine, workos, settings())
    catch_up(one_engine, workos)
    watch(one_engine, bell)
    assert status(one_engine)["state"] == "backfilling"
    assert status(one_engine)["complete_to"] is not None


def test_an_empty_environment_is_current_after_the_first_resync_and_catch_up(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient, bell: Doorbell
) -> None:
    bind(one_engine, workos, settings())
    assert status(one_engine)["state"] == "backfilling"
    Repair(one_engine, workos, settings(), bell).all()
    Repair(one_engine, workos, settings(), bell).all()
    told = status(one_engine)
    assert told["state"] == "current"
    assert told["last_resync"] is not None and told["complete_to"] is not None
    assert [run["requested_by"] for run in rows(one_engine, Run)] == ["first start", "first start"]


def test_a_catch_up_that_the_clock_wanted_first_does_not_put_the_first_start_off(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient, bell: Doorbell
) -> None:
    small_life(sandbox.world)
    bind(one_engine, workos, settings())
    schedule(one_engine, settings())
    assert len(runs(one_engine, Task.CATCH_UP)) == 1
    for _ in range(2):
        Repair(one_engine, workos, settings(), bell).all()
        apply_all(one_engine)
        watch(one_engine, bell)
    assert status(one_engine)["state"] == "current"
    assert differences(one_engine, sandbox.world.truth()) == []


def test_pending_events_hold_the_first_start_up_and_new_ones_do_not(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient, bell: Doorbell
) -> None:
    sandbox.knobs.hold_back = 0
    bind(one_engine, workos, settings())
    small_life(sandbox.world)
    for _ in range(3):
        Repair(one_engine, workos, settings(), bell).all()
        watch(one_engine, bell)
        assert status(one_engine)["state"] == "backfilling"
    waiting = [row["id"] for row in rows(one_engine, Event)]
    apply_all(one_engine)
    assert waiting
    sandbox.world.create_user("new@acme.example")
    store(one_engine, sandbox.world.events[-1:])
    watch(one_engine, bell)
    assert status(one_engine)["state"] == "current"


def test_the_first_resync_is_the_only_one_of_its_day(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient, bell: Doorbell
) -> None:
    bind(one_engine, workos, settings())
    for _ in range(3):
        schedule(one_engine, settings())
        Repair(one_engine, workos, settings(), bell).all()
    assert len(runs(one_engine, Task.RESYNC)) == 1
    done = update(Mirror).values(last_resync_at=db_now_plus(-24 * 3600 - 1))
    in_transaction(one_engine, lambda tx: tx.execute(done))
    schedule(one_engine, settings())
    assert [run["requested_by"] for run in runs(one_engine, Task.RESYNC)] == ["first start", "clock"]


def test_a_release_that_acts_on_further_types_resyncs_once(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient, bell: Doorbell
) -> None:
    bind(one_engine, workos, settings())
    Repair(one_engine, workos, settings(), bell).all()
    known = [type for type in SUBSCRIBED if not type.startswith("role.")]
    in_transaction(one_engine, lambda tx: tx.execute(update(Mirror).values(event_types=known)))
    sandbox.world.create_role("billing")
    for _ in range(2):
        Repair(one_engine, workos, settings(), bell).all()
    assert [run["requested_by"] for run in runs(one_engine, Task.RESYNC)] == ["first start", "new release"]
    assert mirror(one_engine)["event_types"] == SUBSCRIBED


def test_without_a_key_only_retention_is_done(one_engine: Engine, bell: Doorbell, repair_bell: Doorbell) -> None:
    bare = Settings(_env_file=None)
    schedule(one_engine, bare)
    watch(one_engine, repair_bell)
    assert repair_bell.waiting() == 1
    Repair(one_engine, None, bare, bell).all()
    assert [(run["task"], run["status"]) for run in rows(one_engine, Run)] == [(Task.RETENTION, RunStatus.DONE)]
    # What a key had asked for before waits until there is one again.
    start(one_engine, "operator")
    Repair(one_engine, None, bare, bell).all()
    assert {run["status"] for run in runs(one_engine, Task.RESYNC)} == {RunStatus.RUNNING}


# The environment


@pytest.fixture
def two_environments(redis: Redis) -> Any:
    """A sandbox of two environments, both with companies; the second one opens with another key."""
    made = Sandbox(seed=7)
    small_life(made.world)
    small_life(made.add_environment(OTHER_KEY).world)
    with made:
        yield made


@pytest.fixture
def bound(two_environments: Sandbox, redis: Redis, one_engine: Engine, bell: Doorbell) -> Engine:
    """A database that belongs to the first environment."""
    workos = client_of(two_environments, redis)
    for _ in range(2):
        Repair(one_engine, workos, settings(), bell).all()
        apply_all(one_engine)  # what catch-up brought, if WorkOS no longer holds it back
    update_complete_to(one_engine)
    workos.close()
    assert status(one_engine)["state"] == "current"
    return one_engine


@pytest.fixture
def surroundings(set_environment: Callable[..., None], bound: Engine, two_environments: Sandbox) -> None:
    url = bound.url.render_as_string(hide_password=False)
    set_environment(DATABASE_URL=url, **settings_of(two_environments))


def command(*arguments: str, exit_code: int = 2) -> Result:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == exit_code, (result.output, result.exception)
    return result


def everything(engine: Engine) -> dict[str, list[JSON]]:
    """The whole database."""
    return {table.__tablename__: rows(engine, table) for table in (Mirror, Run, Tick, Event, Change)}


COMMANDS = [
    ["worker"],
    ["clock"],
    ["resync"],
    ["resync", "--dry-run"],
    ["catch-up"],
    ["catch-up", "--since", "2026-01-01"],
]
WRONG = {
    "another client id": ({"WORKOS_CLIENT_ID": "client_other"}, f"WORKOS_CLIENT_ID: this database mirrors {CLIENT_ID}"),
    "another environment's key": (
        {"WORKOS_API_KEY": OTHER_KEY},
        "WORKOS_API_KEY: the key sees none of",
    ),
    "a refused key": ({"WORKOS_API_KEY": "sk_test_nobody"}, "WORKOS_API_KEY: WorkOS refuses the key"),
    "no key": ({"WORKOS_API_KEY": ""}, "WORKOS_API_KEY is not set"),
    "no client id": ({"WORKOS_CLIENT_ID": ""}, "WORKOS_CLIENT_ID is not set"),
}


@pytest.mark.usefixtures("surroundings")
@pytest.mark.parametrize(("environment", "said"), WRONG.values(), ids=WRONG)
def test_another_environment_is_refused_before_anything_is_written(
    bound: Engine, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], said: str
) -> None:
    monkeypatch.setenv("ROLE_MAP", "owner=admin")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    before = everything(bound)
    for arguments in COMMANDS:
        result = command(*arguments)
        line = result.stderr.splitlines()[-1]
        assert said in line and "sk_test" not in result.stderr, arguments
        assert everything(bound) == before, arguments


@pytest.mark.usefixtures("surroundings")
@pytest.mark.parametrize("arguments", [["status"], ["events", "list"], ["members", "org_1"]], ids=" ".join)
def test_half_of_a_key_is_refused_everywhere(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    monkeypatch.delenv("WORKOS_CLIENT_ID")
    assert "WORKOS_CLIENT_ID is not set" in command(*arguments).stderr


@pytest.mark.parametrize("gone", ["told", "all but one", "all, untold"])
def test_organizations_that_are_gone_are_not_another_environment(
    bound: Engine, two_environments: Sandbox, redis: Redis, gone: str
) -> None:
    world = two_environments.world
    chosen = list(world.organizations)[: -1 if gone == "all but one" else None]
    first = len(world.events)
    for id in chosen:
        world.delete_organization(id)
    if gone == "told":
        deliver(bound, world.events[first:])
    workos = client_of(two_environments, redis)
    bind(bound, workos, settings())
    workos.close()


def test_with_no_organization_left_another_environments_people_give_it_away(
    bound: Engine, two_environments: Sandbox, redis: Redis
) -> None:
    for id in list(two_environments.world.organizations):
        two_environments.world.delete_organization(id)
    foreign = client_of(two_environments, redis, key=OTHER_KEY)
    with closing(foreign), pytest.raises(ConfigurationError, match="sees none of the organizations"):
        bind(bound, foreign, settings())


def test_a_first_resync_that_failed_is_not_begun_again_at_once(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient, bell: Doorbell
) -> None:
    sandbox.faults.fail("/user_management/users$", status=400, times=None)
    for _ in range(3):
        Repair(one_engine, workos, settings(), bell).all()
    [failed] = runs(one_engine, Task.RESYNC)
    assert failed["status"] == RunStatus.FAILED and status(one_engine)["state"] == "backfilling"
    sandbox.faults.clear()
    in_transaction(one_engine, lambda tx: tx.execute(update(Run).values(finished_at=db_now_plus(-61))))
    for _ in range(2):
        Repair(one_engine, workos, settings(), bell).all()
        apply_all(one_engine)
        watch(one_engine, bell)
    assert status(one_engine)["state"] == "current"


def test_two_that_bind_at_once_to_different_environments_do_not_both(
    both_engines: Engine, workos: WorkOSClient
) -> None:
    def attempt(client_id: str) -> bool:
        try:
            bind(both_engines, workos, settings(workos_client_id=client_id))
        except ConfigurationError:
            return False
        return True

    with ThreadPoolExecutor() as pool:
        done = list(pool.map(attempt, ["client_one", "client_two"] * 2))
    assert sorted(done) == [False, False, True, True]
    assert mirror(both_engines)["client_id"] in ("client_one", "client_two")


def test_with_workos_away_drains_go_on(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient, bell: Doorbell
) -> None:
    sandbox.faults.fail(status=422, times=None)  # no answer to what was asked, and no use in asking again
    small_life(sandbox.world)
    schedule(one_engine, settings())
    with pytest.raises(WorkOSUnavailableError):
        Repair(one_engine, workos, settings(), bell).all()
    assert {run["task"]: run["status"] for run in rows(one_engine, Run)} == {
        Task.RETENTION: RunStatus.DONE,
        Task.RESYNC: RunStatus.RUNNING,
        Task.CATCH_UP: RunStatus.RUNNING,
    }
    deliver(one_engine, sandbox.world.events)
    assert differences(one_engine, sandbox.world.truth()) == []
    sandbox.faults.clear()
    for _ in range(2):
        Repair(one_engine, workos, settings(), bell).all()
        apply_all(one_engine)
        watch(one_engine, bell)
    assert status(one_engine)["state"] == "current"


# The clock


def test_two_clocks_by_mistake_do_no_harm(both_engines: Engine) -> None:
    def due() -> int:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: schedule(both_engines, settings()), range(16)))
        return len(rows(both_engines, Run))

    assert due() == 3  # one of each task
    finish_all(both_engines)
    assert due() == 3
    age_ticks(both_engines, 301)
    assert due() == 4  # the catch-up's five minutes are over
    finish_all(both_engines)
    age_ticks(both_engines, 30 * 24 * 3600)
    assert due() == 7  # a month missed, each once


def finish_all(engine: Engine) -> None:
    in_transaction(engine, lambda tx: tx.execute(update(Run).values(status=RunStatus.DONE)))


def age_ticks(engine: Engine, seconds: float) -> None:
    """As if the clock had last looked so long ago, by the database's clock."""
    in_transaction(engine, lambda tx: tx.execute(update(Tick).values(at=db_now_plus(-seconds))))


def test_a_tick_that_meets_a_run_under_way_comes_when_that_is_over(one_engine: Engine) -> None:
    schedule(one_engine, settings())
    age_ticks(one_engine, 24 * 3600)
    schedule(one_engine, settings())
    assert len(rows(one_engine, Run)) == 3
    finish_all(one_engine)
    schedule(one_engine, settings())
    schedule(one_engine, settings())
    assert len(rows(one_engine, Run)) == 6


def test_the_watch_rings_for_runs_that_nobody_works_on(one_engine: Engine, repair_bell: Doorbell) -> None:
    watch(one_engine, repair_bell)
    assert repair_bell.waiting() == 0
    run_id = start(one_engine, "operator")
    lease = update(Run).where(Run.id == run_id)
    in_transaction(one_engine, lambda tx: tx.execute(lease.values(leased_until=db_now_plus(30))))
    watch(one_engine, repair_bell)
    assert repair_bell.waiting() == 0  # somebody has it
    in_transaction(one_engine, lambda tx: tx.execute(lease.values(leased_until=db_now_plus(-1))))
    assert needs_repair(one_engine)
    for _ in range(3):
        watch(one_engine, repair_bell)
    assert repair_bell.waiting() == 1


def test_a_duty_that_fails_keeps_no_other_from_running(logs: list[Any]) -> None:
    stop, ran = threading.Event(), []

    def fail() -> None:
        raise WorkOSUnavailableError

    def go_on() -> None:
        ran.append(1)
        if len(ran) == 3:
            stop.set()

    run_clock([PeriodicTask("bad", 0.01, fail), PeriodicTask("good", 0.01, go_on)], stop)
    assert len(ran) == 3
    assert {line["task"] for line in logs if line["event"] == "task_failed"} == {"bad"}


@pytest.mark.long
def test_catch_ups_and_drains_beside_each_other_do_not_hold_each_other_up(both_engines: Engine, redis: Redis) -> None:
    clock = Clock()
    with Sandbox(seed=7, clock=clock) as sandbox, closing(client_of(sandbox, redis)) as workos:
        bind(both_engines, workos, settings())
        sandbox.play(1000, seed=4)
        events = sandbox.world.events
        clock.goes_on(seconds=90)
        store(both_engines, (each for place, each in enumerate(events) if place % 5))
        errors: list[str] = []
        hooks.listen(both_engines, "handle_error", lambda context: errors.append(str(context.original_exception)))
        with ThreadPoolExecutor() as pool:
            drains = [pool.submit(drain, both_engines, Policy(batch_size=20)) for _ in range(2)]
            readers = [pool.submit(catch_up, both_engines, workos) for _ in range(2)]
            assert [each.result() for each in drains] == [True, True]
            assert sum(each.result().new for each in readers) == len(events[::5])
        apply_all(both_engines)
        assert differences(both_engines, sandbox.world.truth()) == []
        assert errors == []  # no deadlock, though one would only cost a second
