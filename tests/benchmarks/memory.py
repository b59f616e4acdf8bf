"""Memory: the peak of a process, after some work and after ten times as much."""

from collections.abc import Callable, Iterator

import psutil

from tests.benchmarks.deliveries import send, signed
from tests.benchmarks.drain import filled, story
from tests.benchmarks.runner import LIMIT, OURS, Mark, Row, Sample
from tests.benchmarks.sandboxed import peak_megabytes, resync, workos
from tests.benchmarks.servers import POSTGRESQL, Bench
from tests.benchmarks.workers import seconds_to_drain, workers

PEAK = "peak MB"
MARKS = [Mark(PEAK, LIMIT, most=1.2)]
TIMES = 10


def rows(bench: Bench) -> Iterator[Row]:
    """Yield drain, resync and web, each beside itself at a tenth of the work, on PostgreSQL."""
    works = {
        "drain": (_drain, bench.size(2_000, 20), "events"),
        "resync": (_resync, bench.size(300, 2), "organizations of 10"),
        "web": (_web, bench.size(2_000, 20), "deliveries"),
    }
    for name, (work, number, unit) in works.items():
        contenders = {OURS: _peak(work, bench, number * TIMES), LIMIT: _peak(work, bench, number)}
        what = f"memory of {name}: {number * TIMES:,} {unit}, limit: {number:,}"
        yield Row(what, contenders, MARKS, most_rounds=3)


def _peak(work: Callable[[Bench, int], float], bench: Bench, number: int) -> Callable[[], Sample]:
    return lambda: {PEAK: work(bench, number)}


def _drain(bench: Bench, number: int) -> float:
    with (
        filled(bench, POSTGRESQL, story(number, companies=100)) as url,
        bench.engine(url) as engine,
        workers(bench, url, 1) as found,
    ):
        seconds_to_drain(bench, engine)
        return max(peak_megabytes(process.pid) for process in found)


def _resync(bench: Bench, number: int) -> float:
    with workos(bench, number, 10, {"rate_limits": False}) as address, bench.database(POSTGRESQL) as url:
        bench.empty_redis()
        return resync(bench, url, address).peak_megabytes


def _web(bench: Bench, number: int) -> float:
    with bench.database(POSTGRESQL) as url, bench.web(url) as (port, process):
        send(port, signed(number), connections=16)
        return max(peak_megabytes(child.pid) for child in psutil.Process(process.pid).children(recursive=True))
