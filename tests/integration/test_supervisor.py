"""Lanes are forked by a process without threads, restarted when one dies, and store their counts at the end."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from redis import Redis

from models.database import open_engine
from models.tables import Event, EventStatus
from tests.support import SECRET
from tests.support.inbox import count
from tests.support.processes import QUICK, Commands, eventually
from tests.support.resync import settings_of
from tests.support.stack.machine import environment
from tests.support.stories import new_users, store
from worker.metrics import ACCEPTED_TO_APPLIED, counted
from worker.sandbox import Sandbox

pytestmark = pytest.mark.long

WITHOUT_NOTIFY_THREAD = """
import threading
from worker.cli.programs import _run_clock_and_tail
from worker.settings import load_settings

start = threading.Thread.start

def refuse(thread):
    if thread.name == "notify":
        raise RuntimeError("can't start new thread")
    start(thread)

threading.Thread.start = refuse
settings = load_settings()
_run_clock_and_tail(settings, settings.redis_url)
"""
"""The clock of `up`, in a system that has no thread left for its notifications."""


def test_a_clock_that_cannot_run_ends_its_process_although_the_tail_runs(
    redis_url: str, make_database: Callable[[str], str], tmp_path: Path
) -> None:
    """The supervisor then starts it again. A process with the tail alone would look alive."""
    with Sandbox() as sandbox:
        named = {"DATABASE_URL": make_database("sqlite"), "REDIS_URL": redis_url, "NOTIFY": "json://127.0.0.1:1"}
        given = environment(tmp_path) | {"WORKOS_WEBHOOK_SECRETS": SECRET, **settings_of(sandbox), **named}
        program = [sys.executable, "-c", WITHOUT_NOTIFY_THREAD]
        ran = subprocess.run(program, env=given, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 1 and "can't start new thread" in ran.stderr, ran.stderr


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
