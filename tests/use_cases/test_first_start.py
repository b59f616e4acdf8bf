"""The first start: the mirror is `backfilling` until a full resync and a catch-up have finished."""

from contextlib import closing
from datetime import timedelta
from random import Random
from typing import Any

import pytest
from redis import Redis
from sqlalchemy import Engine, insert, update

from models.database import in_transaction, write_transaction
from models.outcomes import Outcome
from models.tables import Event, EventStatus, MirrorState, Run, RunStatus, Task
from models.types import db_now, db_now_plus
from tests.support import JSON, apply_all, differences, event_row, outcomes, read, rows
from tests.support.actors import by
from tests.support.repair import mirror, runs, settings, status
from tests.support.resync import Clock, client_of, deliver, small_life
from tests.support.stories import store
from worker.decision.payload import parse_time
from worker.errors import WorkOSError
from worker.inbox.store import backlog
from worker.kinds import KINDS, SUBSCRIBED
from worker.queue.doorbell import Doorbell
from worker.repair.catch_up import catch_up, catch_up_by_hand
from worker.repair.environment import bind
from worker.repair.new_types import add_ignored_types, add_new_types, read_new_types
from worker.repair.resync.resync import start
from worker.repair.schedule import schedule, watch
from worker.repair.work import Repair
from worker.reports.explain import explain
from worker.runs import create, lease
from worker.sandbox import Knobs, Sandbox, populate
from worker.sandbox.world import World
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
            Repair(engine, workos, chosen, bell).work_on_all()
            life.look()
            apply_all(engine)
            watch(engine, bell)
            life.look()
            if life.states[-1] == "current":
                break
        assert not life.problems, life.problems
        assert life.states[0] == "backfilling" and life.states[-1] == "current"
        assert life.states == sorted(life.states), "it never goes back"
        # And once nothing changes any more, all of it arrives.
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
    Repair(one_engine, workos, settings(), bell).work_on_all()
    Repair(one_engine, workos, settings(), bell).work_on_all()
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
        Repair(one_engine, workos, settings(), bell).work_on_all()
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
        Repair(one_engine, workos, settings(), bell).work_on_all()
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
        Repair(one_engine, workos, settings(), bell).work_on_all()
    assert len(runs(one_engine, Task.RESYNC)) == 1
    done = update(MirrorState).values(last_resync_at=db_now_plus(-24 * 3600 - 1))
    in_transaction(one_engine, lambda tx: tx.execute(done))
    schedule(one_engine, settings())
    assert [run["requested_by"] for run in runs(one_engine, Task.RESYNC)] == ["first start", "clock"]


def test_new_event_types_cause_one_resync(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient, bell: Doorbell
) -> None:
    bind(one_engine, workos, settings())
    Repair(one_engine, workos, settings(), bell).work_on_all()
    known = [type for type in SUBSCRIBED if not type.startswith("role.")]
    in_transaction(one_engine, lambda tx: tx.execute(update(MirrorState).values(event_types=known)))
    sandbox.world.create_role("billing")
    for _ in range(2):
        Repair(one_engine, workos, settings(), bell).work_on_all()
    assert [run["requested_by"] for run in runs(one_engine, Task.RESYNC)] == ["first start", "new release"]
    assert mirror(one_engine)["event_types"] == SUBSCRIBED


@pytest.fixture
def upgraded(one_engine: Engine, sandbox: Sandbox, clock: Clock, workos: WorkOSClient, bell: Doorbell) -> list[JSON]:
    """A mirror that was filled by a release without invitations, and what WorkOS sent about them, of which the first
    came by webhook and was ignored."""
    world = sandbox.world
    bind(one_engine, workos, settings())
    for _ in range(2):
        Repair(one_engine, workos, settings(), bell).work_on_all()
        apply_all(one_engine)
        watch(one_engine, bell)
    with world.silently():
        invited = world.create_invitation("ann@acme.example", world.create_organization("Acme")["id"])
    events = []
    for what in ("created", "resent"):
        clock.advance(seconds=60)
        events.append(world.emit(f"invitation.{what}", world.changed(invited)) or {})
    row = {"id": events[0]["id"], "type": "invitation.created", "source": "webhook", "webhook_at": db_now()}
    done = {"status": "done", "outcome": "ignored", "body": None, "received_at": db_now_plus(-9000)}
    in_transaction(one_engine, lambda tx: tx.execute(insert(Event).values(row | done)))
    known = [type for type in SUBSCRIBED if not type.startswith("invitation.")]
    clock.advance(hours=9)
    in_transaction(
        one_engine,
        lambda tx: tx.execute(update(MirrorState).values(event_types=known, inbox_to=clock.now, cursor=None)),
    )
    return events


@pytest.mark.long
def test_new_event_types_are_read_for_90_days_and_ignored_events_are_decided(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient, bell: Doorbell, upgraded: list[JSON]
) -> None:
    del sandbox.world.invitations[upgraded[0]["data"]["id"]]  # so that only the events show it
    Repair(one_engine, workos, settings(), bell).work_on_all()
    Repair(one_engine, workos, settings(), bell).work_on_all()
    assert read(one_engine, backlog).oldest_seconds < 60 and mirror(one_engine)["new_types"] is None
    apply_all(one_engine)
    assert outcomes(one_engine, *upgraded) == ["stale", "applied"], "applied in one batch, the second one first"
    first, resent = (event_row(one_engine, event["id"]) for event in upgraded)
    assert b"ann@acme.example" in (first["body"] or b"") and (first["replays"], first["deliveries"]) == (1, 1)
    assert (resent["replays"], resent["api_at"]) == (0, None), "its webhook is not missing"
    [invitation] = rows(one_engine, KINDS["invitation"].table)
    assert invitation["event_id"] == upgraded[1]["id"]
    shown = explain(one_engine, first["id"])
    assert shown is not None
    [step] = [step for step in shown["timeline"] if step["by"] == first["id"]]
    assert "since a new release mirrors its type" in step["why"]


def test_ignored_event_that_catch_up_reads_is_decided(
    one_engine: Engine, workos: WorkOSClient, clock: Clock, upgraded: list[JSON]
) -> None:
    """The events API may still withhold it while the new types are read."""
    for _ in range(2):
        catch_up_by_hand(one_engine, workos, by("ann"), clock.now - timedelta(days=1))
        apply_all(one_engine)
    assert outcomes(one_engine, *upgraded) == ["stale", "applied"]
    assert event_row(one_engine, upgraded[0]["id"])["replays"] == 1


IGNORED = {"status": EventStatus.DONE, "outcome": Outcome.IGNORED, "body": None}


@pytest.mark.long
def test_event_that_an_older_release_ignored_after_that_read_is_decided(
    one_engine: Engine, workos: WorkOSClient, bell: Doorbell, upgraded: list[JSON]
) -> None:
    """The older release ran again for more than two hours, or one of its drains still ran."""
    Repair(one_engine, workos, settings(), bell).work_on_all()
    Repair(one_engine, workos, settings(), bell).work_on_all()
    apply_all(one_engine)
    assert mirror(one_engine)["new_types"] is None
    ignored = update(Event).where(Event.id == upgraded[0]["id"]).values(IGNORED | {"occurred_at": db_now()})
    in_transaction(one_engine, lambda tx: tx.execute(ignored))
    in_transaction(one_engine, create, Task.RETENTION, "test")
    in_transaction(one_engine, create, Task.CATCH_UP, "test")
    Repair(one_engine, workos, settings(), bell).work_on_all()
    apply_all(one_engine)
    assert outcomes(one_engine, upgraded[0]) == ["stale"] and mirror(one_engine)["new_types"] is None


def test_types_of_ignored_events_are_read_again_only_if_workos_still_has_the_events(
    one_engine: Engine, upgraded: list[JSON]
) -> None:
    types = {"types": ["invitation.created"]}
    begun = types | {"after": "event_1"}
    for age_days, waiting, then in ((91, None, None), (89, None, types | {"after": None}), (89, begun, begun)):
        ignored = update(Event).values(IGNORED | {"occurred_at": db_now_plus(-86_400.0 * age_days)})
        with write_transaction(one_engine) as tx:
            tx.execute(ignored)
            tx.execute(update(MirrorState).values(new_types=waiting))
            add_ignored_types(tx)
        assert mirror(one_engine)["new_types"] == then


@pytest.mark.long
def test_interrupted_read_of_new_types_continues(
    one_engine: Engine, sandbox: Sandbox, clock: Clock, workos: WorkOSClient, upgraded: list[JSON]
) -> None:
    types = ["invitation.created", "invitation.resent"]
    in_transaction(one_engine, add_new_types, types)
    more = [sandbox.world.emit("invitation.resent", upgraded[1]["data"]) or {} for _ in range(100)]
    clock.advance(hours=1)
    with lease(one_engine, in_transaction(one_engine, create, Task.CATCH_UP, "test")) as held:
        assert held is not None
        sandbox.faults.truncate("/events", 2, times=None)
        with pytest.raises(WorkOSError):
            read_new_types(one_engine, workos, held)
        assert mirror(one_engine)["new_types"] == {"types": types, "after": more[97]["id"]}
        sandbox.faults.clear()
        calls = sandbox.calls.total()
        read_new_types(one_engine, workos, held)
        assert sandbox.calls.total() == calls + 2, "WorkOS's time, and the second page"
    assert {row["id"] for row in rows(one_engine, Event)} >= {event["id"] for event in (*upgraded, *more)}


def test_new_type_that_workos_refuses_is_read_later(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient, upgraded: list[JSON]
) -> None:
    in_transaction(one_engine, add_new_types, ["invitation.created", "invitation.unheard_of"])
    sandbox.faults.fail("/events", query=r"unheard_of", status=400, times=None)
    with lease(one_engine, in_transaction(one_engine, create, Task.CATCH_UP, "test")) as held:
        assert held is not None
        with pytest.raises(WorkOSError, match=r"invitation\.unheard_of"):
            read_new_types(one_engine, workos, held)
    apply_all(one_engine)
    assert outcomes(one_engine, upgraded[0]) == ["applied"]
    assert mirror(one_engine)["new_types"] == {"types": ["invitation.unheard_of"], "after": None}


def test_first_start_reads_the_events_of_what_cannot_be_listed(
    one_engine: Engine, sandbox: Sandbox, clock: Clock, workos: WorkOSClient, bell: Doorbell
) -> None:
    world = sandbox.world
    connection = world.create_connection(world.create_organization("Acme")["id"], "Okta")["id"]
    world.update_certificate(connection, days=12)
    clock.advance(hours=1)
    for _ in range(2):
        Repair(one_engine, workos, settings(), bell).work_on_all()
        apply_all(one_engine)
    assert len(rows(one_engine, KINDS["saml_certificate"].table)) == 1


def test_only_retention_runs_without_api_key(one_engine: Engine, bell: Doorbell, repair_bell: Doorbell) -> None:
    bare = Settings(_env_file=None)
    schedule(one_engine, bare)
    watch(one_engine, repair_bell)
    assert repair_bell.queued_jobs() == 1
    Repair(one_engine, None, bare, bell).work_on_all()
    assert [(run["task"], run["status"]) for run in rows(one_engine, Run)] == [(Task.RETENTION, RunStatus.DONE)]
    # Reads that were requested while there was a key wait until there is one again.
    start(one_engine, by("operator"))
    Repair(one_engine, None, bare, bell).work_on_all()
    assert {run["status"] for run in runs(one_engine, Task.RESYNC)} == {RunStatus.RUNNING}


def test_failed_first_resync_is_retried_after_a_minute(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient, bell: Doorbell
) -> None:
    sandbox.faults.fail("/user_management/users$", status=400, times=None)
    for _ in range(3):
        Repair(one_engine, workos, settings(), bell).work_on_all()
    [failed] = runs(one_engine, Task.RESYNC)
    assert failed["status"] == RunStatus.FAILED and status(one_engine)["state"] == "backfilling"
    sandbox.faults.clear()
    in_transaction(one_engine, lambda tx: tx.execute(update(Run).values(finished_at=db_now_plus(-61))))
    for _ in range(2):
        Repair(one_engine, workos, settings(), bell).work_on_all()
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
        Repair(one_engine, workos, settings(), bell).work_on_all()
    assert {run["task"]: run["status"] for run in rows(one_engine, Run)} == {
        Task.RETENTION: RunStatus.DONE,
        Task.RESYNC: RunStatus.RUNNING,
        Task.CATCH_UP: RunStatus.RUNNING,
    }
    deliver(one_engine, sandbox.world.events)
    assert differences(one_engine, sandbox.world.truth()) == []
    sandbox.faults.clear()
    for _ in range(2):
        Repair(one_engine, workos, settings(), bell).work_on_all()
        apply_all(one_engine)
        watch(one_engine, bell)
    assert status(one_engine)["state"] == "current"
