"""Sends single events beside a load, and measures how long each takes until a reader of the database sees its row."""

import http.client
import threading
import time
from collections.abc import Callable
from contextlib import closing
from itertools import count
from statistics import quantiles
from types import TracebackType
from typing import Self

import psycopg

from tests.benchmarks.deliveries import PATH
from tests.benchmarks.peers.system import System
from tests.benchmarks.peers.versions import Version

EVERY_SECONDS = 0.05
LOOK_EVERY_SECONDS = 0.002
"""Between two queries while a row is missing: the resolution. An old row is looked for less often, see `SHARE`."""
SHARE = 0.02
"""The pause between two looks is at least this share of the time that the oldest missing row has taken."""
FIRST_OBJECT = 10_000_000
LONGEST_SECONDS = 900.0


class Probe:
    """Sends while its block lasts. One for each database: its objects are always the same."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._missing: dict[str, float] = {}
        self._seen: list[tuple[float, float]] = []
        """When each was sent, and the seconds until its row was seen."""
        self._error: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._run, args=(work,), daemon=True) for work in (self._send, self._look)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()

    def percentiles(self, since: float) -> tuple[float, float]:
        """Wait for the last row, and return p50 and p99 of the seconds from sending until the row was seen.

        Events that were sent before `since` (by `time.perf_counter`) do not count.
        """
        for thread in self._threads:
            thread.join()
        if self._error is not None:
            raise self._error
        cuts = quantiles((seconds for sent, seconds in self._seen if sent >= since), n=100)
        return cuts[49], cuts[98]

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised by `percentiles`
            self._error = error
            self._over.set()

    def _send(self) -> None:
        form, due = self._system.form, time.perf_counter()
        with closing(http.client.HTTPConnection("127.0.0.1", self._system.server.port, timeout=60)) as connection:
            for number in count(FIRST_OBJECT):
                if self._over.wait(max(0.0, due - time.perf_counter())):
                    return
                version = Version(number, 0)
                signature, body = form.delivery(version)
                with self._lock:
                    self._missing[form.id_of(version)] = time.perf_counter()
                connection.request("POST", PATH, body, {"WorkOS-Signature": signature})
                answer = connection.getresponse()
                answer.read()
                assert answer.status == 200, answer.status
                due += EVERY_SECONDS

    def _look(self) -> None:
        sql = f"SELECT id FROM ({self._system.live}) AS live WHERE id = ANY(%s)".encode()  # noqa: S608 - our own query
        with psycopg.connect(self._system.url, autocommit=True) as connection:
            while True:
                with self._lock:
                    missing = dict(self._missing)
                if not missing and self._over.is_set() and not self._threads[0].is_alive():
                    return
                found = [id for (id,) in connection.execute(sql, [list(missing)]).fetchall()] if missing else []
                now = time.perf_counter()
                with self._lock:
                    self._seen += [(sent, now - sent) for sent in map(self._missing.pop, found)]
                oldest = min((at for id, at in missing.items() if id not in found), default=now)
                if now - oldest > LONGEST_SECONDS:
                    raise TimeoutError(f"{self._system.name} has not applied {len(missing)} events")
                time.sleep(max(LOOK_EVERY_SECONDS, SHARE * (now - oldest)))
