"""The first start: the mirror is `backfilling` until a full resync and a catch-up have finished."""

from contextlib import closing
from datetime import timedelta
from random import Random
from typing import Any

import pytest
from redis import Redis
from sqlalchemy import Engine, update

from models.database import in_transaction
from models.tables import Event, MirrorState, Run, RunStatus, Task
from models.types import db_now_plus
from tests.support import JSON, apply_all, differences, rows
from tests.support.actors import by
from tests.support.repair import mirror, runs, settings, status
from tests.support.resync import Clock, client_of, deliver, small_life
from tests.support.sandbox import Knobs, Sandbox, populate
from tests.support.sandbox.world import World
from tests.support.stories import store
from worker.decision.payload import parse_time
from worker.errors import WorkOSError
from worker.kinds import SUBSCRIBED
from worker.queue.doorbell import Doorbell
from worker.repair.catch_up import catch_up
from worker.repair.environment import bind
from worker.repair.resync.resync import start
from worker.repair.schedule import schedule, watch
from worker.repair.work import Repair
from worker.settings import Settings
from worker.workos_api.client import WorkOSClient


def recent(world: World, since: Any) -> set[str]:
    """The ids and domain names in the events of a world since a time."""
    words: set[str] = set()
    for event in world.events:
        at = parse_time(event["created_at"])
        if at and at >= since:
            data = event["data"].get("organization_domain", event["data"])
            words |= {str(data[name]) for name in ("id", "organization_id", "user_id", "domain") if data.get(name)}
    return words


def wrong(engine: Engine, world: World) -> list[str]:
    """Differences from WorkOS, except for objects that changed after `complete_to`."""
    with world.lock:
        claimed = mirror(engine)
        found, touched = differences(engine, world.truth()), recent(world, claimed["complete_to"])
    return [line for line in found if not any(word in line for word in touched)]


class LiveEnvironment:
    """A large environment that changes between any two API calls. Some webhooks are lost."""

    def __init__(self, engine: Engine, sandbox: Sandbox, clock: Clock, seed: int) -> None:
        self.states: list[str] = []
        self.problems: list[BaseException] = []
        self._engine, self._sandbox, self._clock, self._random = engine, sandbox, clock, Random(seed)
        self._undelivered: list[JSON] = []
        populate(sandbox.world, organizations=30, members=5, seed=seed)
        sandbox.world.subscribe(self._undelivered.append)
        sandbox.on_request = self._between_calls

    def look(self) -> None:
        """Check that the mirror is right whenever `mirror_status` says so."""
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
        self._clock.advance(seconds=random.random())
        sandbox.play(random.randrange(4), companies=30, seed=random.randrange(10**6))
        with sandbox.world.lock:
            brought = [self._undelivered.pop(0) for _ in range(random.randrange(len(self._undelivered) + 1))]
        deliver(self._engine, (event for event in brought if random.random() > 0.1))


@pytest.mark.long
@pytest.mark.parametrize("seed", [1, 2])
def test_first_start_under_live_events_is_never_wrong(
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
        clock.advance(seconds=30)
        catch_up(engine, workos)
        apply_all(engine)
        assert differences(engine, sandbox.world.truth()) == []


def test_catch_up_before_first_resync_keeps_backfilling(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient, bell: Doorbell
) -> None:
    with sandbox.world.silently():
        small_life(sandbox.world)
    bind(one_engine, workos, settings())
    catch_up(one_engine, workos)
    watch(one_engine, bell)
    assert status(one_engine)["state"] == "backfilling"
    assert mirror(one_engine)["complete_to"] is not None


def test_empty_environment_is_current_after_resync_and_catch_up(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient, bell: Doorbell
) -> None:
    bind(one_engine, workos, settings())
    assert status(one_engine)["state"] == "backfilling"
    Repair(one_engine, workos, settings(), bell).all()
    Repair(one_engine, workos, settings(), bell).all()
    shown = status(one_engine)
    assert shown["state"] == "current"
    assert shown["last_resync"] is not None and mirror(one_engine)["complete_to"] is not None
    assert [run["requested_by"] for run in rows(one_engine, Run)] == ["first start", "first start"]


def test_early_catch_up_does_not_delay_first_start(
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


def test_first_start_waits_for_earlier_events_only(
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


def test_first_resync_counts_as_daily_resync(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient, bell: Doorbell
) -> None:
    bind(one_engine, workos, settings())
    for _ in range(3):
        schedule(one_engine, settings())
        Repair(one_engine, workos, settings(), bell).all()
    assert len(runs(one_engine, Task.RESYNC)) == 1
    done = update(MirrorState).values(last_resync_at=db_now_plus(-24 * 3600 - 1))
    in_transaction(one_engine, lambda tx: tx.execute(done))
    schedule(one_engine, settings())
    assert [run["requested_by"] for run in runs(one_engine, Task.RESYNC)] == ["first start", "clock"]


def test_new_event_types_cause_one_resync(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient, bell: Doorbell
) -> None:
    bind(one_engine, workos, settings())
    Repair(one_engine, workos, settings(), bell).all()
    known = [type for type in SUBSCRIBED if not type.startswith("role.")]
    in_transaction(one_engine, lambda tx: tx.execute(update(MirrorState).values(event_types=known)))
    sandbox.world.create_role("billing")
    for _ in range(2):
        Repair(one_engine, workos, settings(), bell).all()
    assert [run["requested_by"] for run in runs(one_engine, Task.RESYNC)] == ["first start", "new release"]
    assert mirror(one_engine)["event_types"] == SUBSCRIBED


def test_only_retention_runs_without_api_key(one_engine: Engine, bell: Doorbell, repair_bell: Doorbell) -> None:
    bare = Settings(_env_file=None)
    schedule(one_engine, bare)
    watch(one_engine, repair_bell)
    assert repair_bell.queued_jobs() == 1
    Repair(one_engine, None, bare, bell).all()
    assert [(run["task"], run["status"]) for run in rows(one_engine, Run)] == [(Task.RETENTION, RunStatus.DONE)]
    # What a key had asked for before waits until there is one again.
    start(one_engine, by("operator"))
    Repair(one_engine, None, bare, bell).all()
    assert {run["status"] for run in runs(one_engine, Task.RESYNC)} == {RunStatus.RUNNING}


def test_failed_first_resync_is_retried_after_a_minute(
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


def test_drains_continue_while_workos_is_down(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient, bell: Doorbell
) -> None:
    sandbox.faults.fail(status=422, times=None)  # no answer to what was asked, and no use in asking again
    small_life(sandbox.world)
    schedule(one_engine, settings())
    with pytest.raises(WorkOSError):
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
