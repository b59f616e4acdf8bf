"""Real processes notify: the clock, and `worker` when there is no clock. A restart repeats nothing."""

from collections.abc import Callable

import pytest
from sqlalchemy import update

from models.database import open_engine
from models.tables import Notice, NotifyTarget, Tick
from models.types import db_now_plus
from tests.support import rows
from tests.support.conditions import execute
from tests.support.hooks import SECRET, Web
from tests.support.notify import later
from tests.support.processes import QUICK, Commands, Valkey, eventually
from worker.notify.notifier import NOTIFY_TICK
from worker.repair.schedule import CLOCK_TICK

pytestmark = pytest.mark.long


def test_processes_notify_once(
    make_database: Callable[[str], str], valkey: Valkey, commands: Commands, web_host: Web
) -> None:
    engine = open_engine(url := make_database("postgresql"))
    commands.settings |= QUICK | {"DATABASE_URL": url, "REDIS_URL": valkey.url}
    commands.settings |= {"NOTIFY": web_host.url, "NOTIFY_SECRET": SECRET, "NOTIFY_REMIND_SECONDS": 30 * 86400}

    def reported(word: str) -> list[str]:
        return [each["name"] for message in web_host.took for each in message["data"][word]]

    def after_hours(word: str, name: str) -> bool:
        """Let hours pass, also if a process has just written its rows; return whether `name` was reported."""
        later(engine, 7 * 3600)
        return name in reported(word)

    clock = commands.start("clock")
    eventually(lambda: after_hours("begun", "no_worker"), 60)
    eventually(lambda: any(row["notified_at"] for row in rows(engine, Notice) if row["name"] == "no_worker"), 30)
    clock.kill()
    clock = commands.start("clock")
    [before] = [row["at"] for row in rows(engine, Tick) if row["name"] == NOTIFY_TICK]
    eventually(lambda: next(row["at"] for row in rows(engine, Tick) if row["name"] == NOTIFY_TICK) > before, 30)

    worker = commands.start("worker")
    eventually(lambda: after_hours("ended", "no_worker"), 60)
    clock.stop()
    execute(engine, update(Tick).where(Tick.name == CLOCK_TICK).values(at=db_now_plus(-300)))
    eventually(lambda: after_hours("begun", "no_clock"), 60)
    assert reported("begun").count("no_worker") == 1, "the clock that was started again did not repeat it"
    assert [row["attempts"] for row in rows(engine, NotifyTarget)] == [0]
    worker.stop()
    engine.dispose()
