"""The process that tails the events API: it needs no webhook and no catch-up, and nothing delays it.

`STALENESS_ORGANIZATIONS=10000 pytest tests/integration/test_tail_processes.py` for a full resync that takes minutes.
"""

import os
import time
from collections.abc import Iterator

import psutil
import pytest
from sqlalchemy import Engine

from models.access import Access
from models.views import mirror_status
from tests.support import JSON, rows
from tests.support.actors import by
from tests.support.processes import Command, Commands, eventually
from tests.support.resync import run_row
from tests.support.tail import ask, state, tail_pids
from worker.repair.resync.resync import start
from worker.sandbox import Knobs, Sandbox, populate

pytestmark = pytest.mark.long

BOUND = 10.0
ORGANIZATIONS = int(os.environ.get("STALENESS_ORGANIZATIONS", "100"))


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """A full environment, which sends no webhooks."""
    with Sandbox(seed=7, knobs=Knobs(hold_back=0.2)) as running:
        populate(running.world, organizations=20, members=4)
        yield running


@pytest.fixture
def engine(commands_engine: Engine, commands: Commands) -> Engine:
    commands.settings |= {"TAIL_SECONDS": 0.5, "HOLD_BACK_SECONDS": 1, "CATCH_UP_SECONDS": 3600, "LOG_FORMAT": "json"}
    return commands_engine


def filled_by(commands: Commands, engine: Engine) -> Command:
    """A worker that has filled the mirror."""
    commands.start("clock")
    worker = commands.start("worker", "--processes", "1")
    eventually(lambda: rows(engine, mirror_status)[0]["state"] == "current", 60)
    eventually(lambda: isinstance(answer(engine, {"user_id": "user_1", "organization_id": "org_1"}), Access), 20)
    return worker


def answer(engine: Engine, membership: JSON, bound: float = BOUND) -> Access | str:
    return ask(engine, membership["user_id"], membership["organization_id"], bound)


def role(engine: Engine, membership: JSON) -> str | None:
    found = answer(engine, membership)
    return found.role if isinstance(found, Access) else f"stale: {found}"


def tail_of(worker: Command) -> psutil.Process:
    """The newest process of a worker that tails."""
    return psutil.Process(tail_pids(worker)[-1])


def test_answers_turn_stale_in_an_outage_and_recover(engine: Engine, sandbox: Sandbox, commands: Commands) -> None:
    worker = filled_by(commands, engine)
    membership = next(iter(sandbox.world.memberships.values()))
    sandbox.world.update_membership(membership["id"], role="admin")
    eventually(lambda: role(engine, membership) == "admin", BOUND)
    sandbox.faults.fail("/events", status=503, times=None)
    sandbox.world.deactivate_membership(membership["id"])
    began = time.monotonic()
    eventually(lambda: str(answer(engine, membership)).endswith("503"), BOUND + 5)
    assert time.monotonic() - began >= BOUND - 1 - 2 - 1  # less the hold-back, the rounding of `Date`, and a read
    sandbox.faults.clear()
    eventually(lambda: role(engine, membership) is None, BOUND)
    worker.stop(5)


def test_one_of_two_workers_tails_and_another_takes_over(engine: Engine, sandbox: Sandbox, commands: Commands) -> None:
    worker = filled_by(commands, engine)
    fence = state(engine)["fence"]
    other = commands.start("worker", "--processes", "1")
    eventually(lambda: '"tail_started"' in other.output(), 20)
    time.sleep(2.0)
    assert state(engine)["fence"] == fence  # it waits
    tail_of(worker).kill()
    worker.kill()
    membership = next(iter(sandbox.world.memberships.values()))
    sandbox.world.deactivate_membership(membership["id"])
    eventually(lambda: state(engine)["fence"] == fence + 1, 15)
    eventually(lambda: role(engine, membership) is None, 15)
    other.stop(5)


def test_answers_stay_fresh_during_a_resync_that_uses_up_the_rate_limit(
    engine: Engine, sandbox: Sandbox, commands: Commands
) -> None:
    # 10 calls a second, of which the tail has one; with more organizations up to 100 a second, of which it has ten.
    commands.settings["WORKOS_RATE_SHARE"] = share = min(1.0, ORGANIZATIONS / 1000)
    worker = filled_by(commands, engine)
    membership = next(iter(sandbox.world.memberships.values()))
    with sandbox.world.silently():
        for number in range(ORGANIZATIONS):
            sandbox.world.create_organization(f"Another {number}")
    run_id = start(engine, by("test"))
    bound = 8 if share <= 0.1 else rows(engine, mirror_status)[0]["smallest_bound_seconds"]
    began = time.monotonic()
    asked = 0
    while (run := run_row(engine, run_id))["status"] == "running":
        assert isinstance(found := answer(engine, membership, bound), Access), found
        asked += 1
        time.sleep(0.2)
    seconds = time.monotonic() - began
    print(f"{run['calls']:,} calls in {seconds:.0f} s; {asked:,} answers, none stale")
    assert run["calls"] >= ORGANIZATIONS and seconds > 8
    assert share > 0.1 or state(engine)["interval_seconds"] > 0.5
    worker.stop(10)
