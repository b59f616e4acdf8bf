"""Hooks in a real worker report what an event changed, or a resync found. None delays another."""

from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Engine

from models.database import open_engine
from models.tables import HookDelivery, MirrorState
from tests.support import rows
from tests.support.hooks import OK, SECRET, Web, dripping, long_answer, raw_host
from tests.support.processes import Commands, Valkey, eventually
from tests.support.resync import quietly
from tests.support.stories import new_users, store
from worker.sandbox import Knobs, Sandbox, populate

pytestmark = pytest.mark.long


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(seed=9, knobs=Knobs(hold_back=0.2)) as running:
        populate(running.world, organizations=3, members=3)
        yield running


@pytest.fixture
def engine(commands_engine: Engine, commands: Commands, web_host: Web) -> Engine:
    commands.settings |= {"HOOKS": f"sessions={web_host.url}", "HOOK_SECRETS": f"sessions:{SECRET}"}
    return commands_engine


def test_a_hook_reports_every_change_even_if_its_process_is_killed(
    engine: Engine, sandbox: Sandbox, commands: Commands, web_host: Web
) -> None:
    worker, _ = commands.start("worker"), commands.start("clock")
    eventually(lambda: rows(engine, MirrorState)[0]["backfilled_at"], 60)
    assert web_host.took == [], "the first backfill reports nothing"
    person = sandbox.world.create_user("ann@acme.example")["id"]
    store(engine, [sandbox.world.events[-1]])
    eventually(lambda: person in {message["data"]["object_id"] for message in web_host.took}, 20)
    web_host.open.clear()
    second = sandbox.world.create_user("bob@acme.example")["id"]
    store(engine, [sandbox.world.events[-1]])
    eventually(lambda: web_host.asked > len(web_host.took), 20)  # the call is in progress, under its lease
    worker.lane("hooks").kill()
    web_host.open.set()
    # Once from the process that is dead, and again from another.
    eventually(lambda: [message["data"]["object_id"] for message in web_host.took].count(second) == 2, 15)
    lost = next(iter(sandbox.world.memberships))
    quietly(sandbox.world, lambda: sandbox.world.delete_membership(lost))
    assert commands.start("resync").process.wait(60) == 0
    eventually(lambda: lost in {message["data"]["object_id"] for message in web_host.took}, 40)
    reported = next(message for message in web_host.took if message["data"]["object_id"] == lost)
    assert (reported["type"], reported["data"]["cause"]) == ("membership.deleted", "resync")


def test_a_slow_hook_and_an_endless_answer_delay_no_other_hook(
    make_database: Callable[[str], str], valkey: Valkey, commands: Commands, web_host: Web
) -> None:
    engine = open_engine(url := make_database("postgresql"))
    with raw_host(dripping(OK + b"\r\n")) as slow, raw_host(long_answer(None)) as endless:
        commands.settings |= {"DATABASE_URL": url, "REDIS_URL": valkey.url, "SWEEP_SECONDS": 0.5, "HOOK_SECONDS": 1}
        hooks = {"endless": endless, "slow": slow, "good": web_host.url}
        commands.settings["HOOKS"] = ",".join(f"{name}={url}" for name, url in hooks.items())
        commands.settings["HOOK_SECRETS"] = f"good:{SECRET},slow:{SECRET[:-4]}c2xv,endless:{SECRET[:-4]}ZW5k"
        worker, clock = commands.start("worker", "--processes", "1"), commands.start("clock")
        first, *events = new_users(40)
        store(engine, [first])
        eventually(lambda: len(web_host.took) == 1, 60)
        lane = worker.lane("hooks")
        memory = lane.memory_info().rss
        store(engine, events[:30])
        for number, event in enumerate(events[30:], start=32):
            store(engine, [event])
            eventually(lambda: len(web_host.took) >= number, 15)  # noqa: B023 - called at once
        failed = eventually(lambda: [row for row in rows(engine, HookDelivery) if row["error"]], 30)
        assert {(row["hook"], row["error"]) for row in failed} == {("slow", "HookError: no answer within 1 s")}
        assert lane.memory_info().rss - memory < 25_000_000
        clock.stop()
        worker.stop()
    engine.dispose()
