"""Growth: how fast an inbox is drained into a mirror that is already large."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count

from sqlalchemy import Engine

from tests.benchmarks.access import PER_ORGANIZATION, fill
from tests.benchmarks.drain import RATE
from tests.benchmarks.history import fill_inbox, settle
from tests.benchmarks.runner import LIMIT, OURS, Mark, Row, Sample
from tests.benchmarks.servers import Bench
from tests.support import JSON, made, read
from tests.support.stories import store
from worker.inbox.drain import Drain, DrainLimits
from worker.inbox.store import backlog

SMALLEST = 10_000
_turns = count(1)


def rows(bench: Bench) -> Iterator[Row]:
    """Yield each size beside the smallest; a size is mirror rows (two for each member) and rows of the inbox."""
    sizes = bench.size([(100_000, 0), (1_000_000, 0)], [(2_000, 2_000)])
    if bench.large:
        sizes = [(5_000_000, 10_000_000)]
    for kind in bench.kinds:
        for mirror, inbox in sizes:
            with ExitStack() as stack:
                small = stack.enter_context(bench.engine(stack.enter_context(bench.database(kind))))
                big = stack.enter_context(bench.engine(stack.enter_context(bench.database(kind))))
                contenders = {
                    OURS: _draining(bench, big, mirror, inbox),
                    LIMIT: _draining(bench, small, bench.size(SMALLEST, 1_000), 0),
                }
                what = f"growth, {kind}: {mirror:,} mirror rows and {inbox:,} of the inbox, limit: {SMALLEST:,}"
                yield Row(what, contenders, [Mark(RATE, LIMIT, least=0.9)])


def _draining(bench: Bench, engine: Engine, mirror: int, inbox: int) -> Callable[[], Sample]:
    """Fill a database and return what drains new events about random members of it."""
    members, number = mirror // 2, bench.size(SMALLEST // 2, 100)
    fill(engine, members)
    if inbox:
        fill_inbox(engine, inbox, members)
    settle(engine)

    def run() -> Sample:
        store(engine, updates(number, members))
        began = time.perf_counter()
        assert Drain(engine, DrainLimits(max_seconds=3600))()
        took = time.perf_counter() - began
        assert read(engine, backlog).pending == 0
        return {RATE: number / took}

    return run


def updates(number: int, members: int) -> list[JSON]:
    """Return events that change `number` random memberships of those that `access.fill` made, once each."""
    turn = next(_turns)
    at, dice = 3_000_000 + turn, random.Random(turn)  # minutes: years after what `fill` made
    return [
        made(
            "organization_membership.updated",
            at,
            event_id=f"event_growth_{turn}_{place}",
            id=f"om_{person}",
            organization_id=f"org_{person // PER_ORGANIZATION}",
            user_id=f"user_{person}",
            role={"slug": ("admin", "member")[turn % 2]},
        )
        for place, person in enumerate(dice.sample(range(members), number))
    ]
