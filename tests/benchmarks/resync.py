"""`python -m tests.benchmarks.resync`: how near a full resync comes to what WorkOS's rate limits permit.

Runs `workos-sync resync` as a process of its own, against a sandbox with latency and the documented limits, at the
whole of them: with a tenth of the organizations, then with all; each time on an empty mirror (everything is written)
and again (nothing is). Prints (calls / permitted rate) / wall, which cannot exceed 1, and the peak memory of all
organizations over that of a tenth. Exit code 1 if a ratio misses its mark or the mirror is wrong. For Linux.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import click
from rich.console import Console
from rich.table import Table
from sqlalchemy import select

from models.database import open_engine, reading
from models.tables import Run, Task
from tests.demo.machine import call
from tests.demo.stack import Database, Stack
from tests.support import differences
from worker.bucket import ALL

LEAST_OF_RATE = 0.9
MOST_MEMORY = 1.2
LOOK_EVERY_SECONDS = 0.05


@dataclass(frozen=True)
class Measured:
    """One resync. The seconds are those of the run, without the start of its process."""

    mirror: str
    organizations: int
    calls: int
    least_calls: int
    seconds: float
    cpu_seconds: float
    peak_megabytes: float

    @property
    def of_rate(self) -> float:
        """(calls / permitted rate) / wall. All calls count against the address's limit, as narrow as any here."""
        return self.calls / (ALL.calls / ALL.seconds) / self.seconds


@click.command()
@click.option("--organizations", type=click.IntRange(10), default=10_000, show_default=True)
@click.option("--members", type=click.IntRange(1), default=10, show_default=True, help="Of each organization.")
@click.option("--latency", type=float, default=0.05, show_default=True, help="Of WorkOS, in seconds.")
@click.option("--database", type=click.Choice(["sqlite", "postgres"]), default="postgres", show_default=True)
def main(organizations: int, members: int, latency: float, database: str) -> None:
    """Measure and print."""
    console = Console(highlight=False, width=110)
    few, all_of_them = (
        _measure(number, members, latency, cast("Database", database))
        for number in (organizations // 10, organizations)
    )
    _show(console, [*few, *all_of_them])
    rate = min(measured.of_rate for measured in all_of_them)
    memory = max(m.peak_megabytes for m in all_of_them) / max(m.peak_megabytes for m in few)
    console.print(f"of the permitted rate, the slower of the two: {rate:.3f} (at least {LEAST_OF_RATE})")
    console.print(f"peak memory over that of a tenth: {memory:.3f} (at most {MOST_MEMORY})")
    sys.exit(int(rate < LEAST_OF_RATE or memory > MOST_MEMORY))


def _measure(organizations: int, members: int, latency: float, database: Database) -> list[Measured]:
    folder = Path(tempfile.mkdtemp(prefix="wos-"))
    people = organizations * members
    least = -(-organizations // 100) + organizations * -(-members // 100) + -(-people // 100) + 1  # 1: the roles
    try:
        with Stack(folder, database=database, settings={"WORKOS_RATE_SHARE": "1"}) as stack:
            stack.start_valkey()
            stack.start_database()
            stack.start_sandbox()
            control = f"{stack.sandbox_url}/sandbox"
            call("POST", f"{control}/populate", {"organizations": organizations, "members": members}, seconds=600)
            call("PUT", f"{control}/knobs", {"latency": latency, "rate_limits": True})
            found = [_resync(stack, mirror, organizations, least) for mirror in ("empty", "equal")]
            _require_equal(stack, call("GET", f"{control}/truth", seconds=600))
            return found
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _resync(stack: Stack, mirror: str, organizations: int, least: int) -> Measured:
    process = subprocess.Popen(
        [sys.executable, "-m", "worker.cli", "resync"], env=stack.env, cwd=stack.folder, stdout=subprocess.DEVNULL
    )
    megabytes = 0.0
    while (waited := os.wait4(process.pid, os.WNOHANG))[0] == 0:
        megabytes = max(megabytes, _peak_megabytes(process.pid))
        time.sleep(LOOK_EVERY_SECONDS)
    _, status, usage = waited
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise click.ClickException(f"resync ended with {process.returncode}")
    engine = open_engine(stack.database_url)
    with reading(engine) as tx:
        ended = select(Run.__table__).where(Run.task == Task.RESYNC, Run.finished_at.is_not(None))
        run = tx.execute(ended.order_by(Run.finished_at.desc()).limit(1)).one()
    engine.dispose()
    cpu = usage.ru_utime + usage.ru_stime
    seconds = (run.finished_at - run.created_at).total_seconds()
    return Measured(mirror, organizations, run.calls, least, seconds, cpu, megabytes)


def _peak_megabytes(pid: int) -> float:
    """The most memory a living process ever had. Not what wait4 tells: that counts the process that started it too."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return max((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), default=0.0)


def _require_equal(stack: Stack, truth: dict[str, object]) -> None:
    engine = open_engine(stack.database_url)
    wrong = differences(engine, truth)
    engine.dispose()
    if wrong:
        raise click.ClickException(f"the mirror differs from WorkOS in {len(wrong)} places: {wrong[0]}")


def _show(console: Console, found: list[Measured]) -> None:
    table = Table("organizations", "mirror", "calls", "needed", "seconds", "CPU s", "peak MB", "of rate")
    for one in found:
        numbers = (f"{one.calls:,}", f"{one.least_calls:,}", f"{one.seconds:.1f}", f"{one.cpu_seconds:.1f}")
        table.add_row(f"{one.organizations:,}", one.mirror, *numbers, f"{one.peak_megabytes:.0f}", f"{one.of_rate:.3f}")
    console.print(table)


if __name__ == "__main__":
    main()
