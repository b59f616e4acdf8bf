"""An idle installation of `workos-sync up` with an API key, without extras: its memory and its use of a core.

Where OpenTelemetry is installed, as for development, redis-py imports a part of it: 20 MB.
"""

import time
from collections.abc import Iterator

import psutil

from tests.benchmarks.runner import OURS, Mark, Row, Sample
from tests.benchmarks.sandboxed import workos
from tests.benchmarks.servers import SQLITE, START_SECONDS, Bench
from tests.support.resync import CLIENT_ID
from tests.support.stack.machine import answers, free_ports
from worker.sandbox.service import API_KEY

SETTLED_SECONDS = 20.0
"""The first resync is over then."""
MEMORY = "proportional MB"
CORE = "% of a core"


def rows(bench: Bench) -> Iterator[Row]:
    """Yield it on SQLite."""
    watched = bench.size(30.0, 1.0)

    def ours() -> Sample:
        [port] = free_ports(1)
        with bench.database(SQLITE) as url, workos(bench, 3, 3, {}) as address:
            key = {"WORKOS_API_KEY": API_KEY, "WORKOS_CLIENT_ID": CLIENT_ID, "WORKOS_BASE_URL": address}
            env = bench.environment(url, PORT=port, **key)
            with bench.running("up", ["-m", "tests.benchmarks.without_otel", "up"], env) as process:
                process.wait_until(lambda: answers(f"http://127.0.0.1:{port}/readyz"), START_SECONDS)
                time.sleep(SETTLED_SECONDS)
                above = psutil.Process(process.pid)
                family = [above, *above.children(recursive=True)]
                before = _seconds(family)
                time.sleep(watched)
                used = _seconds(family) - before
                memory = sum(each.memory_full_info().pss for each in family)
        return {MEMORY: memory / 1e6, CORE: round(100 * used / watched, 2)}

    yield Row(
        "idle installation, up, sqlite", {OURS: ours}, [Mark(MEMORY, most=300), Mark(CORE, most=1)], most_rounds=3
    )


def _seconds(family: list[psutil.Process]) -> float:
    return sum(each.cpu_times().user + each.cpu_times().system for each in family)
