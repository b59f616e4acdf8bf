"""Drain: what waits in the inbox into the mirror, by one process."""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from tests.benchmarks import limits
from tests.benchmarks.baseline import jobs_per_second
from tests.benchmarks.runner import BASELINE, LIMIT, OURS, Mark, Row, Sample
from tests.benchmarks.servers import POSTGRESQL, Bench
from tests.support import JSON, statuses
from tests.support.stories import store
from worker.inbox.drain import Drain, DrainLimits
from worker.sandbox import World, play

RATE = "events/s"
GENEROUS = "rq worker --worker-class rq.SimpleWorker"
MARKS = [Mark(RATE, BASELINE, least=60), Mark(RATE, GENEROUS)]


def rows(bench: Bench) -> Iterator[Row]:
    """Yield ours, the rows that it leaves written plainly, and one RQ job per event, on each kind of database."""
    events = story(bench.size(20_000, 200), companies=bench.size(300, 5))
    some = events[: bench.size(50, 3)]
    for kind in bench.kinds:
        with bench.database(kind) as empty, filled(bench, kind, events) as full:
            with bench.database(kind, full) as url:
                drained(bench, url, len(events))
                statements = limits.finished(url)
            contenders = {
                OURS: _on_copies(bench, kind, full, lambda url: drained(bench, url, len(events))),
                LIMIT: _on_copies(bench, kind, full, lambda url: _written(url, statements, len(events))),  # noqa: B023 - measured before the next
                BASELINE: _on_copies(bench, kind, empty, lambda url: jobs_per_second(bench, url, some, "rq.Worker")),
                GENEROUS: _on_copies(
                    bench, kind, empty, lambda url: jobs_per_second(bench, url, some, "rq.SimpleWorker")
                ),
            }
            gc.collect()
            gc.freeze()  # what was prepared for the rows is not to be searched again and again meanwhile
            least = 0.5 if kind == POSTGRESQL else 0.25
            yield Row(f"drain, {kind}", contenders, [Mark(RATE, LIMIT, least=least), *MARKS])
            gc.unfreeze()


def story(number: int, companies: int) -> list[JSON]:
    """Return `number` events of the life of some companies."""
    world, events = World(1), list[JSON]()
    world.subscribe(events.append)
    play(world, number, companies=companies, seed=1)
    return events[:number]


@contextmanager
def filled(bench: Bench, kind: str, events: Sequence[JSON]) -> Iterator[str]:
    """Make a database whose inbox holds `events`; yields its URL."""
    with bench.database(kind) as url:
        with bench.engine(url) as engine:
            store(engine, events)
        yield url


def drained(bench: Bench, url: str, number: int) -> float:
    """Drain the inbox of `url`, which holds `number` events, and return events a second."""
    with bench.engine(url) as engine:
        began = time.perf_counter()
        assert Drain(engine, DrainLimits(max_seconds=3600))()
        took = time.perf_counter() - began
        assert statuses(engine) == {"done": number}
    return number / took


def _written(url: str, statements: Sequence[limits.Statement], number: int) -> float:
    began = time.perf_counter()
    limits.write(url, statements)
    return number / (time.perf_counter() - began)


def _on_copies(bench: Bench, kind: str, original: str, run: Callable[[str], float]) -> Callable[[], Sample]:
    """Return what measures `run` on a copy of its own."""

    def on_copy() -> Sample:
        with bench.database(kind, original) as url:
            return {RATE: run(url)}

    return on_copy
