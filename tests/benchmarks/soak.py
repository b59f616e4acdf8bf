"""`python -m tests.benchmarks.soak`: half of the machine's capacity for a long time, then a burst.

Starts a whole installation with PostgreSQL, measures its capacity (events that are accepted and applied in a second,
as the slower of the two lets them through), and sends half of that for `--minutes`. The memory of each process, the
age of the oldest event that waits, and Valkey's memory and keys must stay as they were. Then a burst comes as fast as
the endpoint accepts it, and the lag must return to zero. The load generator runs on the same cores. Exit code 1 if
something grew, was refused, or did not return.
"""

import json
import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import psutil
from redis import Redis
from rich.console import Console
from rich.table import Table
from sqlalchemy import Engine, text

from models.database import open_engine, read_transaction
from tests.benchmarks.load import Sent, send
from tests.benchmarks.steady import Steady, steady
from tests.support import read
from tests.support.stack.machine import short_folder
from tests.support.stack.processes import StackError
from tests.support.stack.stack import Stack
from worker.inbox.store import backlog

SHARE = 0.5
WARM_UP_SECONDS = 75
"""Longer than RQ keeps what became of a job: its keys are as many as ever from then on."""
MEGABYTE = 2**20
SAMPLES = 180
LONGEST_DRAIN_SECONDS = 900.0
APPLIED = text(
    "SELECT percentile_cont(ARRAY[0.5, 0.99]) WITHIN GROUP (ORDER BY extract(epoch FROM processed_at - received_at)) "
    "FROM events WHERE id LIKE :which AND status = 'done'"
)


@dataclass(frozen=True, slots=True)
class Phase:
    """One load and what became of it; times in seconds, `drained` from the last answer until nothing waited."""

    name: str
    accepted: int
    refused: dict[str, int]
    seconds: float
    per_second: float
    acknowledged_p50: float
    acknowledged_p99: float
    applied_p50: float
    applied_p99: float
    drained: float


class Soak:
    """An installation under load."""

    def __init__(self, stack: Stack, engine: Engine, redis: Redis) -> None:
        self._stack, self._engine, self._redis = stack, engine, redis
        self._sent = 0
        self._names: dict[int, str] = {}
        self.samples: list[dict[str, float]] = []

    def load(self, name: str, number: int, rate: float | None = None, *, sample: bool = False) -> Phase:
        """Send `number` events, wait until all are applied, and return the result. `sample`: record samples."""
        numbers = range(self._sent, self._sent + number)
        self._sent += number
        with ThreadPoolExecutor(1) as pool:
            sending = pool.submit(send, self._stack.webhook_url, self._stack.secret, numbers, name, rate=rate)
            while sample and not sending.done():
                self.samples.append(self._sample())
                time.sleep(max(1.0, number / (rate or 1.0) / SAMPLES))
            sent = sending.result()
        return self._phase(name, sent, self._drained())

    def _phase(self, name: str, sent: Sent, drained: float) -> Phase:
        with read_transaction(self._engine) as tx:
            applied = tx.execute(APPLIED, {"which": f"event_{name}_%"}).scalar_one()
        acknowledged = sent.percentiles()
        counts = (len(sent.waits), dict(sent.refused), sent.seconds, sent.per_second)
        return Phase(name, *counts, *acknowledged, applied[0], applied[1], drained)

    def _drained(self) -> float:
        """Wait until nothing is pending; return how long that took."""
        began = time.monotonic()
        while (waiting := read(self._engine, backlog)).pending:
            self._stack.require_running()
            if time.monotonic() - began > LONGEST_DRAIN_SECONDS:
                raise StackError(f"{waiting.pending} events still wait, the oldest for {waiting.oldest_seconds:.0f} s")
            time.sleep(0.25)
        return time.monotonic() - began

    def _sample(self) -> dict[str, float]:
        found = {"lag s": read(self._engine, backlog).oldest_seconds}
        found["Valkey MB"] = self._redis.info("memory")["used_memory"] / MEGABYTE
        found["Valkey keys"] = float(self._redis.dbsize())
        for command in ("web", "worker", "clock"):
            process = psutil.Process(self._stack.processes[command].pid)
            for place, one in enumerate([process, *process.children(recursive=True)]):
                name = self._names.setdefault(one.pid, f"{command} {place}")
                memory = one.memory_full_info()
                found[f"{name} RSS MB"], found[f"{name} PSS MB"] = memory.rss / MEGABYTE, memory.pss / MEGABYTE
        return found


@click.command()
@click.option("--minutes", type=click.FloatRange(0.5), default=30.0, show_default=True, help="Of the soak.")
@click.option("--measure", type=click.IntRange(1000), default=20_000, show_default=True, help="Events, for capacity.")
@click.option("--burst", type=click.IntRange(1000), default=100_000, show_default=True, help="Events.")
@click.option("--json", "file", type=click.Path(dir_okay=False, path_type=Path), help="Write all figures there.")
def main(minutes: float, measure: int, burst: int, file: Path | None) -> None:
    """Measure, soak, burst, print."""
    console = Console(highlight=False, width=120)
    folder = short_folder()
    try:
        with Stack(folder, database="postgres") as stack:
            stack.start()
            stack.run("resync")  # the first start's, so that it does not fall into what is measured
            engine, redis = open_engine(stack.database_url), Redis.from_url(stack.redis_url)
            soak = Soak(stack, engine, redis)
            capacity = soak.load("capacity", measure)
            rate = SHARE * capacity.accepted / (capacity.seconds + capacity.drained)
            console.print(f"capacity {rate / SHARE:.0f} events/s accepted and applied; {minutes:g} min at {rate:.0f}/s")
            phases = [
                capacity,
                soak.load("warm-up", round(rate * WARM_UP_SECONDS), rate),
                soak.load("soak", round(rate * minutes * 60), rate, sample=True),
                soak.load("burst", burst),
            ]
            redis.close()
            engine.dispose()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    series = steady(soak.samples)
    _show(console, phases, series)
    load = os.getloadavg()
    console.print(f"load of the machine over the last 1, 5 and 15 minutes: {load}; {os.cpu_count()} cores")
    passed = all(one.flat for one in series) and not any(phase.refused for phase in phases)
    if file is not None:
        made = {"passed": passed, "rate": rate, "phases": [asdict(phase) for phase in phases]}
        made |= {"series": [asdict(one) | {"flat": one.flat} for one in series], "samples": soak.samples, "load": load}
        file.write_text(json.dumps(made, indent=1))
    sys.exit(not passed)


def _show(console: Console, phases: list[Phase], series: list[Steady]) -> None:
    table = Table(
        "load", "accepted", "refused", "per s", "acknowledged p50 / p99 ms", "applied p50 / p99 s", "drained s"
    )
    for one in phases:
        acknowledged = f"{one.acknowledged_p50 * 1000:.1f} / {one.acknowledged_p99 * 1000:.1f}"
        applied = f"{one.applied_p50:.3f} / {one.applied_p99:.3f}"
        refused = ", ".join(f"{status}: {number}" for status, number in one.refused.items()) or "0"
        numbers = (f"{one.accepted:,}", refused, f"{one.per_second:.0f}")
        table.add_row(one.name, *numbers, acknowledged, applied, f"{one.drained:.1f}")
    console.print(table)
    table = Table("during the soak", "first third", "last third", "at most", "flat")
    for of in series:
        flat = "yes" if of.flat else "NO" if of.whole else "NO: not there all the time"
        table.add_row(of.name, f"{of.first:.1f}", f"{of.last:.1f}", f"{of.most:.1f}", flat)
    console.print(table)


if __name__ == "__main__":
    main()
