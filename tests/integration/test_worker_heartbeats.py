"""Status knows which worker processes are alive, also while one runs a long job."""

import signal
import time
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from tests.support.processes import Commands, Valkey, eventually
from worker.bootstrap import CLAIM, CLAIM_SECONDS, database_id
from worker.queue.doorbell import DRAIN, REPAIR
from worker.queue.heartbeat import worker_states
from worker.sandbox import Sandbox, populate

pytestmark = pytest.mark.long

LANES = (DRAIN, REPAIR)


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(seed=9) as running:
        populate(running.world, organizations=3, members=3)
        yield running


def test_a_busy_process_stays_visible_and_a_frozen_or_killed_one_disappears(
    commands_engine: Engine, sandbox: Sandbox, commands: Commands, valkey: Valkey
) -> None:
    worker = commands.start("worker", WORKER_PROCESSES=2)
    with valkey.client() as redis:

        def states() -> tuple[list[str], list[str]]:
            found = worker_states(redis, LANES)
            return found[DRAIN], found[REPAIR]

        idle = ["idle", "idle"]
        eventually(lambda: states() == (idle, ["idle"]), 60)
        sandbox.knobs.latency = 15.0  # so that the first resync takes minutes
        commands.start("clock")
        eventually(lambda: states() == (idle, ["busy"]), 20)

        valkey.flush()
        eventually(lambda: states() == (idle, ["busy"]), 8)
        ends = time.monotonic() + 14  # longer than a heartbeat counts
        while time.monotonic() < ends:
            assert states() == (idle, ["busy"])
            time.sleep(0.5)

        assert "could not connect" not in worker.output(), "waiting for jobs is no failure of Redis"

        lane = worker.lane(REPAIR)
        lane.send_signal(signal.SIGSTOP)
        eventually(lambda: states() == (idle, []), 15)
        lane.send_signal(signal.SIGCONT)
        eventually(lambda: states() == (idle, ["busy"]), 8)

        family = worker.family()
        worker.kill()
        for process in family:
            process.kill()
        eventually(lambda: states() == ([], []), 15)


def test_a_worker_without_a_clock_renews_the_claim_of_its_database(
    commands_engine: Engine, commands: Commands, valkey: Valkey
) -> None:
    commands.start("worker")
    with valkey.client() as redis:
        eventually(lambda: worker_states(redis, [REPAIR])[REPAIR] == ["idle"], 60)
        redis.delete(CLAIM)
        eventually(lambda: redis.get(CLAIM) == database_id(commands_engine).encode(), CLAIM_SECONDS)


def test_a_stopped_worker_disappears_at_once(commands_engine: Engine, commands: Commands, valkey: Valkey) -> None:
    worker = commands.start("worker")
    with valkey.client() as redis:
        eventually(lambda: worker_states(redis, LANES) == {DRAIN: ["idle"], REPAIR: ["idle"]}, 60)
        worker.stop()
        assert worker_states(redis, LANES) == {DRAIN: [], REPAIR: []}
