"""A sandbox WorkOS that is full of organizations, and resyncs against it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select

from models.database import read_transaction
from models.tables import Run, Task
from tests.benchmarks.servers import START_SECONDS, Bench
from tests.support import JSON, differences
from tests.support.resync import CLIENT_ID
from tests.support.stack.machine import answers, call, free_ports
from tests.support.stack.processes import StackError
from worker.sandbox.service import API_KEY

LOOK_EVERY_SECONDS = 0.05


@dataclass(frozen=True)
class Resynced:
    """One resync; `seconds` are those of the run, without the start of its process."""

    calls: int
    seconds: float
    peak_megabytes: float


@contextmanager
def workos(bench: Bench, organizations: int, members: int, knobs: JSON) -> Iterator[str]:
    """Run a sandbox with `organizations` of `members` each; yields its address."""
    port = free_ports(1)[0]
    url = f"http://127.0.0.1:{port}"
    with bench.running(
        "sandbox", ["-m", "worker.cli", "sandbox", "--port", str(port)], bench.environment("sqlite://")
    ) as process:
        process.wait_until(lambda: answers(f"{url}/sandbox/progress"), START_SECONDS)
        call("POST", f"{url}/sandbox/populate", {"organizations": organizations, "members": members}, seconds=600)
        call("PUT", f"{url}/sandbox/knobs", knobs)
        yield url


def least_calls(organizations: int, members: int) -> int:
    """Return how many calls a full resync needs at least: pages of 100, a page for each organization, the roles."""
    return -(-organizations // 100) + organizations * -(-members // 100) + -(-organizations * members // 100) + 1


def resync(bench: Bench, database_url: str, workos_url: str) -> Resynced:
    """Run `workos-sync resync` as a process of its own, at the whole of WorkOS's documented rate limits."""
    settings = {"WORKOS_API_KEY": API_KEY, "WORKOS_CLIENT_ID": CLIENT_ID, "WORKOS_BASE_URL": workos_url}
    env = bench.environment(database_url, WORKOS_RATE_SHARE=1, **settings)
    with bench.running("resync", ["-m", "worker.cli", "resync"], env) as process:
        megabytes = 0.0
        while process.popen.poll() is None:
            megabytes = max(megabytes, peak_megabytes(process.pid))
            time.sleep(LOOK_EVERY_SECONDS)
        process.require_success(0)
    with bench.engine(database_url) as engine:
        with read_transaction(engine) as tx:
            ended = select(Run.__table__).where(Run.task == Task.RESYNC, Run.finished_at.is_not(None))
            run = tx.execute(ended.order_by(Run.finished_at.desc()).limit(1)).one()
        if wrong := differences(engine, call("GET", f"{workos_url}/sandbox/truth", seconds=600)):
            raise StackError(f"the mirror differs from WorkOS in {len(wrong)} places: {wrong[0]}")
    return Resynced(run.calls, (run.finished_at - run.created_at).total_seconds(), megabytes)


def peak_megabytes(pid: int) -> float:
    """Return the peak memory of a living process, from Linux (0.0 if it has ended)."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return max((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), default=0.0)
