"""Two workers beside one: the same inbox, drained by real processes."""

from collections.abc import Callable, Iterator

from tests.benchmarks.drain import RATE, filled, story
from tests.benchmarks.runner import LIMIT, OURS, Mark, Row, Sample
from tests.benchmarks.servers import POSTGRESQL, Bench
from tests.benchmarks.workers import seconds_to_drain, workers


def rows(bench: Bench) -> Iterator[Row]:
    """Yield two beside one, on PostgreSQL: SQLite has one writer."""
    events = story(bench.size(20_000, 200), companies=bench.size(300, 5))

    def draining(full: str, number: int) -> Callable[[], Sample]:
        def run() -> Sample:
            with bench.database(POSTGRESQL, full) as url, bench.engine(url) as engine, workers(bench, url, number):
                return {RATE: len(events) / seconds_to_drain(bench, engine)}

        return run

    with filled(bench, POSTGRESQL, events) as full:
        contenders = {OURS: draining(full, 2), LIMIT: draining(full, 1)}
        what = "two workers, postgresql, limit: one worker; no load generator runs"
        yield Row(what, contenders, [Mark(RATE, LIMIT, least=1.5)])
