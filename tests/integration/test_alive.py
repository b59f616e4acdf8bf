"""`workos-sync alive` with real processes that die, freeze, or wait for a database and a Redis that are down."""

import signal
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import psutil
import pytest

from models.database import database_url
from tests.drill.proxy import Proxy
from tests.support.cli import report, run
from tests.support.processes import QUICK, Commands, Valkey, alive, eventually, piece
from worker.processes.alive import STALE_SECONDS, file_of, silent_processes

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]


def through(proxy: Proxy, url: str) -> str:
    """The address of a PostgreSQL database behind a proxy."""
    address = database_url(url).set(host="127.0.0.1", port=proxy.port, query={"sslmode": "disable"})
    return address.render_as_string(hide_password=False).replace("+psycopg", "")


def says_dead(command: str) -> str:
    """The answer that a command is not alive; empty if it is."""
    result = run("alive", command, exit_code=None)
    assert result.exit_code in (0, 1), result.output
    return result.stderr if result.exit_code else ""


def test_alive_knows_the_dead_and_the_frozen_and_nothing_else(
    commands: Commands, valkey: Valkey, make_database: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(commands.folder)
    assert says_dead("worker") == "workos-sync: worker is not running in this directory\n"
    url = make_database("postgresql")
    with closing(Proxy(Path(str(database_url(url).query["host"])) / ".s.PGSQL.5432")) as proxy:
        commands.settings |= QUICK | {"DATABASE_URL": through(proxy, url), "REDIS_URL": valkey.url}
        worker, clock = commands.start("worker"), commands.start("clock")
        lanes = eventually(worker.lanes, 60)
        eventually(lambda: not says_dead("clock"), 60)

        # Database and Redis are down, and the lanes die of it again and again.
        valkey.kill()
        with proxy.swallowing():
            lanes[0].kill()
            ends = time.monotonic() + STALE_SECONDS + 5
            while time.monotonic() < ends:
                assert not says_dead("worker") and not says_dead("clock")
                time.sleep(1)
        valkey.start()
        assert worker.process.poll() is None and clock.process.poll() is None

    [lane, *_] = eventually(lambda: list(filter(alive, worker.lanes())), 60)
    for frozen in (lane, psutil.Process(clock.process.pid)):
        frozen.send_signal(signal.SIGSTOP)
    eventually(lambda: f"worker is dead or frozen: process {lane.pid} for 2" in says_dead("worker"), 30)
    eventually(lambda: "clock is dead or frozen: process " in says_dead("clock"), 10)
    for frozen in (lane, psutil.Process(clock.process.pid)):
        frozen.send_signal(signal.SIGCONT)
    eventually(lambda: not says_dead("worker") and not says_dead("clock"), 5)
    assert report("alive", "clock") == {"alive": True}

    worker.kill()
    clock.kill()
    eventually(lambda: says_dead("worker") and says_dead("clock"), 30)


def test_a_command_that_ended_is_not_alive_at_once(
    commands: Commands, redis_url: str, make_database: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(commands.folder)
    commands.settings |= {"DATABASE_URL": make_database("sqlite"), "REDIS_URL": redis_url}
    clock = commands.start("clock")
    eventually(lambda: "repair_disabled" in clock.output(), 60)  # from then on, SIGTERM stops it in order
    assert not says_dead("clock")
    clock.stop()
    assert says_dead("clock") and not file_of("clock").exists()


def test_a_command_that_stops_slowly_is_alive_until_it_ends_unless_it_is_frozen(tmp_path: Path) -> None:
    slow, frozen = tmp_path / "slow.alive", tmp_path / "frozen.alive"
    with piece("slow_to_stop", slow) as stops, piece("slow_to_stop", frozen) as hangs, ExitStack() as at_end:
        pids = [int(each.stdout.readline()) for each in (stops, hangs) if each.stdout is not None]
        for supervisor in (stops, hangs):
            supervisor.terminate()
        psutil.Process(pids[1]).send_signal(signal.SIGSTOP)
        at_end.callback(psutil.Process(pids[1]).kill)
        found: list[int] = []
        while stops.poll() is None or not found:
            assert stops.poll() is not None or silent_processes(slow) == []
            found = [pid for pid, _ in silent_processes(frozen) or []]
            assert hangs.poll() is None
            time.sleep(0.5)
        assert (stops.returncode, found) == (0, pids[1:])
