"""The first start and later catch-ups, with real commands against a sandbox WorkOS."""

import threading
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, select

from models.database import read_transaction
from models.tables import Event, MirrorState
from models.views import mirror_status
from tests.support import apply_all, differences, rows
from tests.support.inbox import count, pending
from tests.support.processes import Commands, eventually
from tests.support.stories import store
from worker.sandbox import Knobs, Sandbox, populate

pytestmark = pytest.mark.long


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """A full environment."""
    with Sandbox(seed=7, knobs=Knobs(hold_back=0.2)) as running:
        populate(running.world, organizations=20, members=4)
        yield running


@pytest.fixture
def engine(commands_engine: Engine, commands: Commands) -> Engine:
    commands.settings["CATCH_UP_LAG_SECONDS"] = "2"
    return commands_engine


def state(engine: Engine) -> str:
    return str(rows(engine, mirror_status)[0]["state"])


def test_a_first_start_waits_until_workos_is_reachable(engine: Engine, sandbox: Sandbox, commands: Commands) -> None:
    sandbox.faults.fail(status=503, times=None)
    worker, clock = commands.start("worker"), commands.start("clock")
    sandbox.world.create_user("early@acme.example")
    store(engine, sandbox.world.events)
    eventually(lambda: pending(engine) == 0, 30)
    assert state(engine) == "backfilling"
    sandbox.faults.clear()
    eventually(lambda: state(engine) == "current", 30)
    assert differences(engine, sandbox.world.truth()) == []

    # From here on no webhook arrives.
    sandbox.play(60, companies=20)
    eventually(lambda: count(engine) == len(sandbox.world.events) and pending(engine) == 0, 30)
    assert differences(engine, sandbox.world.truth()) == []
    clock.stop()
    worker.stop()


def test_kill_9_between_two_pages_of_a_catch_up_loses_nothing(
    engine: Engine, sandbox: Sandbox, commands: Commands
) -> None:
    assert commands.start("catch-up").process.wait(30) == 0
    for number in range(450):
        sandbox.world.create_user(f"person_{number}@acme.example")
    sandbox.knobs.hold_back = 0.0
    third, killed = threading.Event(), threading.Event()

    def stop_at_the_third(_method: str, path: str, _query: object) -> None:
        if path == "/events" and count(engine) >= 200:
            third.set()
            killed.wait(30)

    sandbox.on_request = stop_at_the_third
    command = commands.start("catch-up")
    assert third.wait(30)
    command.kill()
    killed.set()
    sandbox.on_request = None
    assert count(engine) == 200
    again = commands.start("catch-up")
    assert again.process.wait(30) == 0, again.output()
    apply_all(engine)
    assert count(engine) == 450 == len(rows(engine, Event))
    with read_transaction(engine) as tx:
        assert tx.execute(select(MirrorState.inbox_to)).scalar_one() is not None
