"""Lanes are forked by a process without threads, restarted when one dies, and store their counts at the end."""

from collections.abc import Callable

import psutil
import pytest
from redis import Redis

from models.database import open_engine
from models.tables import Event, EventStatus
from tests.support.inbox import count
from tests.support.processes import QUICK, Commands, eventually
from tests.support.resync import settings_of
from tests.support.stories import new_users, store
from worker.metrics import ACCEPTED_TO_APPLIED, counted
from worker.sandbox import Sandbox

pytestmark = pytest.mark.long


def test_lanes_are_restarted_and_store_their_counts_at_the_end(
    commands: Commands, redis_url: str, make_database: Callable[[str], str]
) -> None:
    url = make_database("sqlite")
    with Sandbox() as sandbox:
        commands.settings |= {"DATABASE_URL": url, "REDIS_URL": redis_url, **QUICK, **settings_of(sandbox)}
        worker, clock = commands.start("worker"), commands.start("clock")
        lanes = eventually(worker.lanes, 30)
        assert psutil.Process(worker.process.pid).num_threads() == 1
        lanes[0].kill()
        eventually(lambda: lanes[0] not in worker.lanes() and len(worker.lanes()) == len(lanes), 10)
        engine = open_engine(url)
        store(engine, story := new_users(3))
        eventually(lambda: count(engine, Event.status == EventStatus.DONE) == len(story), 30)
        engine.dispose()
        worker.stop()
        clock.stop()
    with Redis.from_url(redis_url) as redis:
        counts = counted(redis)
    applied = sum(number for name, number in counts.items() if name.name == f"{ACCEPTED_TO_APPLIED}_bucket")
    assert applied == len(story)
