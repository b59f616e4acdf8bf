"""A system under load: a server that can be killed and started again, its other processes, and its database."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import psycopg

from tests.benchmarks.peers.versions import Form
from tests.support.stack.processes import Process, StackError

LONGEST_BACKLOG_SECONDS = 900.0
LOOK_EVERY_SECONDS = 0.02
MAX_STARTS = 5
"""An outgoing connection may take a free port before the server does. Then it starts again on another."""


class Server:
    """The processes that answer webhooks. `start` runs them until its block ends, and yields port and process."""

    def __init__(self, start: Callable[[], AbstractContextManager[tuple[int, Process]]]) -> None:
        self._start = start
        self._running: AbstractContextManager[tuple[int, Process]] | None = None
        self.port = 0
        self.process: Process | None = None

    def __enter__(self) -> Self:
        for starts_left in reversed(range(MAX_STARTS)):
            self._running = self._start()
            try:
                self.port, self.process = self._running.__enter__()
                break
            except StackError:
                if not starts_left:
                    raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.__exit__(kind, error, traceback)

    def kill_and_restart(self) -> None:
        """Kill every process of the server with SIGKILL, and start it again on another port."""
        assert self.process is not None
        self.process.kill()
        self.__exit__(None, None, None)
        self.__enter__()


@dataclass(frozen=True)
class System:
    """One system that runs.

    `live`: a query for id and name (the version's number) of every object that is there. `pending`: a query that is
    true while something acknowledged is not applied; None if the 200 says that it is applied. `others`: process ids
    of all that it runs beside the server; of each, its children count too.
    """

    name: str
    url: str
    server: Server
    form: Form
    live: str
    pending: str | None = None
    others: Sequence[int] = field(default_factory=tuple)

    def pids(self) -> list[int]:
        """Return the ids of its processes, without children."""
        assert self.server.process is not None
        return [self.server.process.pid, *self.others]

    def query(self, sql: str, *parameters: Any) -> list[Any]:
        """Run one statement on its database, and return the rows."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            return connection.execute(sql.encode(), parameters or None).fetchall()

    def wait_until_applied(self) -> float:
        """Wait until nothing is pending, and return how many seconds that took.

        Raises:
            StackError: something is still pending after a quarter of an hour.
        """
        began = time.perf_counter()
        if self.pending is None:
            return 0.0
        with psycopg.connect(self.url, autocommit=True) as connection:
            while True:
                (waiting,) = connection.execute(self.pending.encode()).fetchone() or (False,)
                took = time.perf_counter() - began
                if not waiting:
                    return took
                if took > LONGEST_BACKLOG_SECONDS:
                    raise StackError(f"{self.name} has not applied everything after {took:.0f} s")
                time.sleep(LOOK_EVERY_SECONDS)

    def found(self) -> dict[int, int]:
        """Return the objects that are there, with the number of their version."""
        return {self.form.object_of(id): int(name) for id, name in self.query(self.live)}
