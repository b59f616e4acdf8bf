"""SIGTERM: every command ends by itself within seconds, with code 0, and leaves no process behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from rq import SimpleWorker

from models.database import open_engine
from models.tables import Batch, Event, Tick
from tests.support import rows, statuses
from tests.support.inbox import count, held_in_mid_batch, let_time_pass, pending
from tests.support.processes import Commands, Valkey, alive, eventually
from tests.support.stack.machine import ROOT
from tests.support.stories import new_users, store, written_once

pytestmark = pytest.mark.long

STOPPED_WHILE_IT_BEGINS_TO_WAIT = """
import signal
from worker.cli.shared import until_stopped

with until_stopped() as stop:
    with stop._cond:  # as `wait` does, before it waits
        signal.raise_signal(signal.SIGTERM)
    assert stop.wait(10)
"""


def test_a_signal_that_arrives_when_a_command_begins_to_wait_ends_it() -> None:
    subprocess.run([sys.executable, "-c", STOPPED_WHILE_IT_BEGINS_TO_WAIT], cwd=ROOT, check=True, timeout=30)


def test_a_worker_stopped_in_mid_drain_ends_soon_and_the_next_one_continues(
    make_database: Callable[[str], str], valkey: Valkey, commands: Commands
) -> None:
    db_url = make_database("postgresql")
    engine = open_engine(db_url)
    commands.settings |= {"DATABASE_URL": db_url, "REDIS_URL": valkey.url, "BATCH_SIZE": 4, "SWEEP_SECONDS": 0.5}
    clock = commands.start("clock")
    worker = commands.start("worker", "--processes", "1")
    store(engine, story := new_users(1500))
    let_time_pass(engine, 5)
    with held_in_mid_batch(engine, worker, 30):
        lanes = worker.lanes()
        worker.process.terminate()
        for lane in lanes:  # directly, because the drain continues before the supervisor could do it
            lane.send_signal(signal.SIGTERM)
    assert worker.process.wait(10) == 0, worker.output()[-2000:]
    assert not any(map(alive, lanes))
    left = pending(engine)
    assert left > 0, "a stop waits for the current batch, not for the whole backlog"
    assert rows(engine, Batch) == [], "the current batch was finished"
    worker = commands.start("worker", "--processes", "1", BATCH_SIZE=500)
    eventually(lambda: pending(engine) == 0, 40)
    assert statuses(engine) == {"done": len(story)} and count(engine, Event.attempts > 0) == 0
    written_once(engine)
    engine.dispose()
    clock.stop()
    worker.stop()


def test_ctrl_c_ends_all_processes_with_code_0(
    valkey: Valkey, commands: Commands, make_database: Callable[[str], str]
) -> None:
    commands.settings |= {"DATABASE_URL": (url := make_database("sqlite")), "REDIS_URL": valkey.url}
    engine = open_engine(url)
    clock, worker = commands.start("clock"), commands.start("worker", "--processes", "1")
    with valkey.client() as redis:
        eventually(lambda: SimpleWorker.all(connection=redis), 30)
    eventually(lambda: rows(engine, Tick), 30)  # the clock's first heartbeat
    engine.dispose()
    for command in (worker, clock):
        os.killpg(command.process.pid, signal.SIGINT)
    for command in (worker, clock):
        assert command.process.wait(25) == 0, command.output()
        assert "Traceback" not in command.output() and "Fatal Python error" not in command.output()


@pytest.mark.parametrize("seconds", [0.0, 0.1, 0.3, 1.0])
def test_a_web_that_is_stopped_while_it_starts_ends_at_once(
    commands: Commands, make_database: Callable[[str], str], valkey: Valkey, seconds: float
) -> None:
    commands.settings |= {"DATABASE_URL": make_database("sqlite"), "REDIS_URL": valkey.url, "WEB_PROCESSES": 3}
    web, _ = commands.web()  # it listens before its processes are started
    eventually(web.family, 20)
    time.sleep(seconds)
    web.stop(15)  # a request could take 20 s
