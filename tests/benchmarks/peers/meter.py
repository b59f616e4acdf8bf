"""Resources that a system uses: processor time with that of PostgreSQL, write-ahead log, memory."""

from contextlib import suppress
from dataclasses import dataclass

import psutil

from tests.benchmarks.peers.system import System
from tests.benchmarks.servers import Bench

MEGABYTE = 2**20
WAL = "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')"


@dataclass(frozen=True, slots=True)
class Used:
    """Processor time in seconds, of the system and of PostgreSQL, and bytes of write-ahead log, since some start."""

    own: float
    postgres: float
    wal: int

    def __sub__(self, before: "Used") -> "Used":
        return Used(self.own - before.own, self.postgres - before.postgres, self.wal - before.wal)


class Meter:
    """Reads the resources of one system.

    PostgreSQL is shared, so the other systems must be idle. The benchmark's own queries count too, for each system.
    """

    def __init__(self, bench: Bench, system: System) -> None:
        self._system = system
        self._postmaster = int((bench.folder / "postgres" / "postmaster.pid").read_text().split()[0])

    def used(self) -> Used:
        """Return what was used until now."""
        wal = int(self._system.query(WAL)[0][0])
        return Used(sum(map(_seconds, self._system.pids())), _seconds(self._postmaster), wal)

    def megabytes(self) -> float:
        """Return the proportional memory (PSS) of the system's processes now, without PostgreSQL."""
        return sum(one.memory_full_info().pss for pid in self._system.pids() for one in _tree(pid)) / MEGABYTE


def _tree(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def _seconds(pid: int) -> float:
    """Return the processor time of a process and its children, those that have ended included."""
    spent = 0.0
    for one in _tree(pid):
        with suppress(psutil.NoSuchProcess):
            spent += sum(one.cpu_times()[:4])  # its own, and of children that it has waited for
    return spent
