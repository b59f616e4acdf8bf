"""Without REDIS_URL: the first command starts a Valkey, the others in the same folder use it."""

import shutil
import tempfile
from functools import partial
from pathlib import Path

import pytest
from redis import Redis
from rq import SimpleWorker
from sqlalchemy import Engine

from models.database import open_engine
from tests.support import statuses
from tests.support.inbox import pending
from tests.support.processes import Command, Commands, eventually, working_in
from tests.support.resync import settings_of
from tests.support.stories import new_users, store
from worker.queue.doorbell import DRAIN
from worker.queue.heartbeat import worker_states
from worker.sandbox import Sandbox

pytestmark = pytest.mark.long


def test_two_commands_in_one_folder_share_one_server(commands: Commands) -> None:
    folder = commands.folder
    data = folder / ".workos-sync" / "valkey"
    migrate = commands.start("migrate")
    assert migrate.process.wait(30) == 0, migrate.output()
    worker = commands.start("worker", "--processes", "1")
    eventually(lambda: "worker_started" in worker.output(), 30)
    with Redis(unix_socket_path=str(folder / ".workos-sync" / "valkey.sock")) as redis:
        eventually(lambda: worker_states(redis, [DRAIN])[DRAIN] == ["idle"], 30)
    engine: Engine = open_engine(f"sqlite:///{folder}/.workos-sync/mirror.db")
    store(engine, new_users(20))
    clock = commands.start("clock", SWEEP_SECONDS=0.2)
    eventually(lambda: "sweep_rang" in clock.output(), 30)
    eventually(lambda: pending(engine) == 0, 15)  # the clock's wake-up reached the worker: both use one server
    assert statuses(engine) == {"done": 20}
    engine.dispose()
    with Redis(unix_socket_path=str(folder / ".workos-sync" / "valkey.sock")) as redis:
        assert len(SimpleWorker.all(connection=redis)) == 2, "one drains, one repairs"
        assert redis.info("persistence")["aof_enabled"] == 1
        assert redis.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    assert len(working_in(data)) == 1
    clock.stop()
    worker.stop()
    assert working_in(data) == []


def test_the_clock_waits_for_a_frozen_server(commands: Commands) -> None:
    folder = commands.folder
    migrate = commands.start("migrate")
    assert migrate.process.wait(30) == 0, migrate.output()
    clock = commands.start("clock", SWEEP_SECONDS=0.2)
    eventually(lambda: working_in(folder / ".workos-sync" / "valkey"), 30)
    worker = commands.start("worker", "--processes", "1")
    eventually(lambda: worker.output().count("worker_started") == 2, 30)
    (server,) = working_in(folder / ".workos-sync" / "valkey")
    server.suspend()
    eventually(lambda: "Timeout reading" in clock.output(), 30)
    eventually(lambda: clock.output().count("Timeout reading") > 2 or clock.process.poll() is not None, 30)
    assert clock.process.poll() is None, clock.output()
    server.resume()
    engine: Engine = open_engine(f"sqlite:///{folder}/.workos-sync/mirror.db")
    store(engine, new_users(1))
    eventually(lambda: pending(engine) == 0, 30)
    engine.dispose()
    assert working_in(folder / ".workos-sync" / "valkey") == [server]


def test_register_stores_its_call_counts_before_its_server_stops(commands: Commands) -> None:
    with Sandbox(seed=7) as sandbox:
        commands.settings |= settings_of(sandbox)
        migrate = commands.start("migrate")
        assert migrate.process.wait(60) == 0, migrate.output()
        register = commands.start("register", "http://127.0.0.1:8000/webhooks/workos")
        assert register.process.wait(60) == 0, register.output()
    assert "signing secret, shown only once: " in register.output()
    assert "counts_kept" not in register.output()


def started(worker: Command, processes: int) -> bool:
    return worker.output().count("worker_started") == processes


def test_folder_of_any_name() -> None:
    name = 'a b#c?d%41\u00e4 it\'s "x"\\\n'
    parent = Path(tempfile.mkdtemp(prefix="wos-"))  # a socket's path must be short
    folder = parent / name
    folder.mkdir()
    commands = Commands(folder)
    try:
        assert commands.start("migrate").process.wait(30) == 0
        for _ in range(2):  # the second start finds the first one's socket and data
            worker = commands.start("worker", "--processes", "1")
            eventually(partial(started, worker, 2), 30)
            (server,) = working_in(folder / ".workos-sync" / "valkey")
            with Redis(unix_socket_path=str(folder / ".workos-sync" / "valkey.sock")) as redis:
                assert redis.ping() and redis.config_get("appendonly") == {"appendonly": "yes"}
            status = commands.start("doctor", "--json")
            status.process.wait(30)
            assert "a worker answered within" in status.output(), "other commands find it"
            worker.stop()
            assert not server.is_running()
        assert [path.name for path in parent.iterdir()] == [name], "no neighbour was made"
    finally:
        commands.sweep_away()
        shutil.rmtree(parent)
