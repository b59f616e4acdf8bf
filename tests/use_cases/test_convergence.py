"""Whole histories of a system: whatever arrives, is lost, comes twice or late, and whatever repairs, it ends right.

`CONVERGENCE_EXAMPLES=2000 pytest tests/use_cases/test_convergence.py` for a long run. Each example is a number from
which its history follows, so that one that fails can be told again.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import timedelta
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis
from sqlalchemy import Connection, Engine, delete, update

from models.database import open_engine, write
from models.tables import Base, Drift, Event, EventStatus, Mirror, RunStatus
from tests.sandbox import Knobs, Sandbox, play
from tests.support import apply_all, differences, rows
from tests.use_cases.joining import tell
from tests.use_cases.resyncs import Clock, directory_of, expire_lease, go_on, make_reads_due, run_row
from worker import replay as replays
from worker.catch_up import catch_up, settle
from worker.directory import Directory, UnreadableError
from worker.doorbell import Doorbell
from worker.reads import work_due
from worker.replay import Selection
from worker.resync import start
from worker.runs import BusyError, lease
from worker.wiring import MOST_CONNECTIONS

pytestmark = pytest.mark.long

EXAMPLES = int(os.environ.get("CONVERGENCE_EXAMPLES", "12"))
LAG = timedelta(seconds=5)


class History:
    """One system, and the WorkOS it mirrors, through a random history."""

    def __init__(
        self, engine: Engine, sandbox: Sandbox, clock: Clock, directory: Directory, redis: Redis, seed: int
    ) -> None:
        self.engine, self.sandbox, self.clock, self.directory, self.redis = engine, sandbox, clock, directory, redis
        self.dice = Random(seed)
        self.steps: list[Callable[[], object]] = [
            *(self.life_goes_on, self.life_goes_on, self.life_goes_on_untold),
            *(self.some_arrive, self.some_arrive, self.the_newest_arrive),
            *(self.time_passes, self.catches_up, self.resyncs_a_little, self.resyncs_a_little),
            *(self.resyncs_one_workspace, self.reads_what_is_in_doubt, self.replays, self.workos_fails),
        ]

    def life_goes_on(self) -> None:
        play(self.sandbox.world, self.dice.randint(1, 8), companies=3, seed=self.dice.randrange(2**32))

    def life_goes_on_untold(self) -> None:
        with self.sandbox.world.silently():
            for _ in range(self.dice.randint(1, 3)):
                self._one_silent_act()

    def _one_silent_act(self) -> None:
        world = self.sandbox.world
        acts: dict[str, Callable[[str], Any]] = {
            "memberships": world.delete_membership,
            "users": world.delete_user,
            "domains": world.delete_domain,
            "organizations": lambda id: world.update_organization(id, name=f"Renamed {self.dice.random()}"),
        }
        what = self.dice.choice(sorted(acts))
        if ids := list(getattr(world, what)):
            with suppress(KeyError):
                acts[what](self.dice.choice(ids))

    def some_arrive(self) -> None:
        events = self.sandbox.world.events
        some = [self.dice.choice(events) for _ in range(self.dice.randint(0, 12))] if events else []
        tell(self.engine, some)

    def the_newest_arrive(self) -> None:
        newest = self.sandbox.world.events[-self.dice.randint(1, 10) :]
        self.dice.shuffle(newest)
        tell(self.engine, newest)

    def time_passes(self) -> None:
        self.clock.goes_on(seconds=self.dice.choice([1, 3, 30, 4000]))

    def catches_up(self) -> None:
        catch_up(self.engine, self.directory, lag=LAG)
        if self.dice.random() < 0.5:
            apply_all(self.engine)
            settle(self.engine)

    def resyncs_a_little(self) -> None:
        """Begin a full resync, or go on with one, for some pages; its worker may die."""
        pages, calls = self.dice.randint(0, 12), self.sandbox.calls.total()
        with suppress(BusyError):
            run_id = start(self.engine, "test")
            go_on(self.engine, self.directory, run_id, lambda: self.sandbox.calls.total() >= calls + pages)
            expire_lease(self.engine, run_id)

    def resyncs_one_workspace(self) -> None:
        if ids := list(self.sandbox.world.organizations):
            with suppress(BusyError):
                go_on(self.engine, self.directory, start(self.engine, "test", organization_id=self.dice.choice(ids)))

    def reads_what_is_in_doubt(self) -> None:
        make_reads_due(self.engine)
        work_due(self.engine, self.directory, lambda: False)

    def replays(self) -> None:
        done = [row["id"] for row in rows(self.engine, Event) if row["status"] == EventStatus.DONE]
        if chosen := tuple(self.dice.sample(done, min(5, len(done)))):
            run_id = replays.start(self.engine, Selection(ids=chosen), "test", None, again=True)
            with lease(self.engine, run_id) as held:
                assert held is not None
                replays.replay(self.engine, held, Doorbell(self.redis, "drain"), 1e6, lambda: False)
            apply_all(self.engine)

    def workos_fails(self) -> None:
        paths = ("/organizations", "/user_management/users", "/user_management/organization_memberships", "/events")
        status = self.dice.choice([0, 429, 500])
        self.sandbox.faults.fail(self.dice.choice(paths), method="GET", status=status, times=self.dice.choice([2, 7]))

    def ends(self) -> None:
        """What the clock would do in the end: everything is read, and everything compared."""
        self.sandbox.faults.clear()
        for _ in range(2):
            self.clock.goes_on(seconds=60)
            catch_up(self.engine, self.directory, lag=LAG)
            apply_all(self.engine)
        self._finishes_a_resync()  # that was left off, and listed long ago
        run_id = self._finishes_a_resync()
        if any(row["action"] == "withheld" and row["run_id"] == run_id for row in rows(self.engine, Drift)):
            # In so small a mirror a few deletions are many: an operator approves them.
            assert go_on(self.engine, self.directory, start(self.engine, "test", approves=run_id))
        self.reads_what_is_in_doubt()

    def _finishes_a_resync(self) -> str:
        """Go on with the full run that was left off, if there is one, else a new one, to its end."""
        run_id = start(self.engine, "test")
        assert go_on(self.engine, self.directory, run_id)
        ended = run_row(self.engine, run_id)
        assert ended["status"] == RunStatus.DONE, ended["error"]
        return run_id


@pytest.fixture(params=["sqlite", "postgresql"])
def any_engine(
    request: pytest.FixtureRequest, make_database: Callable[[str], str], no_one_at_the_door: None
) -> Iterator[Engine]:
    engine = open_engine(make_database(request.param), pool_size=MOST_CONNECTIONS)
    yield engine
    engine.dispose()


def empty(engine: Engine, clock: Clock) -> None:
    """As a database that was only migrated and bound: to make one for each example takes long."""

    def drop_all(tx: Connection) -> None:
        for table in Base.metadata.sorted_tables:
            if table.name not in ("mirror", "public_domains"):
                tx.execute(delete(table))
        nothing = ("cursor", "cursor_at", "inbox_to", "inbox_at", "complete_to", "backfilled_at", "last_resync_at")
        tx.execute(update(Mirror).values(dict.fromkeys(nothing) | {"cursor_at": clock()}))

    write(engine, drop_all)


@pytest.mark.timeout(0)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32), steps=st.integers(5, 30))
def test_every_history_ends_equal_to_workos(any_engine: Engine, redis: Redis, seed: int, steps: int) -> None:
    dice, clock = Random(seed), Clock()
    empty(any_engine, clock)
    knobs = Knobs(children_deleted=dice.random() < 0.5)
    knobs.update({"role_deletion": dice.choice(["events", "silently", "silently_same_version"])})
    with Sandbox(seed=seed, clock=clock, knobs=knobs) as sandbox, closing(directory_of(sandbox, redis)) as directory:
        history = History(any_engine, sandbox, clock, directory, redis, seed)
        for _ in range(steps):
            with suppress(UnreadableError):
                history.dice.choice(history.steps)()
        history.ends()
        assert differences(any_engine, sandbox.world.truth()) == []
        assert {row["status"] for row in rows(any_engine, Event)} <= {EventStatus.DONE}
