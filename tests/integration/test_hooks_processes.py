"""Hooks in a real worker report what an event changed, and a lost delete that only a resync found."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from models.tables import Mirror
from tests.support import rows
from tests.support.hooks import SECRET, Web
from tests.support.processes import Commands, eventually
from tests.support.resync import quietly
from tests.support.sandbox import Knobs, Sandbox, populate
from tests.support.stories import store

pytestmark = pytest.mark.long


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(seed=9, knobs=Knobs(hold_back=0.2)) as running:
        populate(running.world, organizations=3, members=3)
        yield running


@pytest.fixture
def host() -> Iterator[Web]:
    web = Web()
    yield web
    web.server.shutdown()
    web.server.server_close()


@pytest.fixture
def engine(commands_engine: Engine, commands: Commands, host: Web) -> Engine:
    commands.settings |= {"HOOKS": f"sessions={host.url}", "HOOK_SECRETS": f"sessions:{SECRET}"}
    return commands_engine


def test_a_hook_reports_every_change_even_if_its_process_is_killed(
    engine: Engine, sandbox: Sandbox, commands: Commands, host: Web
) -> None:
    worker, _ = commands.start("worker"), commands.start("clock")
    eventually(lambda: rows(engine, Mirror)[0]["backfilled_at"], 60)
    assert host.took == [], "the first backfill reports nothing"
    person = sandbox.world.create_user("ann@acme.example")["id"]
    store(engine, [sandbox.world.events[-1]])
    eventually(lambda: person in {message["data"]["object_id"] for message in host.took}, 20)
    host.open.clear()
    second = sandbox.world.create_user("bob@acme.example")["id"]
    store(engine, [sandbox.world.events[-1]])
    eventually(lambda: host.asked > len(host.took), 20)  # the call is in progress, under its lease
    worker.lane("hooks").kill()
    host.open.set()
    # Once from the process that is dead, and again from another.
    eventually(lambda: [message["data"]["object_id"] for message in host.took].count(second) == 2, 15)
    lost = next(iter(sandbox.world.memberships))
    quietly(sandbox.world, lambda: sandbox.world.delete_membership(lost))
    assert commands.start("resync").process.wait(60) == 0
    eventually(lambda: lost in {message["data"]["object_id"] for message in host.took}, 40)
    reported = next(message for message in host.took if message["data"]["object_id"] == lost)
    assert (reported["type"], reported["data"]["cause"]) == ("membership.deleted", "resync")
