"""Acknowledge: deliveries verified and committed, through the command line of `workos-sync web`."""

from collections.abc import Callable, Iterator

from tests.benchmarks.deliveries import GENERATOR, send_for, signed
from tests.benchmarks.runner import BASELINE, LIMIT, OURS, Mark, Row, Sample
from tests.benchmarks.servers import POSTGRESQL, Bench

MOST_PER_SECOND = 9_000
"""More than any of them takes, so that none is sent twice."""


def rows(bench: Bench) -> Iterator[Row]:
    """Yield ours beside a check of the signature only, and one RQ job per event, on each kind of database."""
    for kind in bench.kinds:
        least = 0.6 if kind == POSTGRESQL else None
        marks = [
            Mark("deliveries/s", LIMIT, least=least),
            Mark("deliveries/s", BASELINE),
            Mark("p99 ms", LIMIT, most=3),
            Mark("p50 ms", LIMIT),
            Mark("failed", most=0),
        ]
        with (
            bench.database(kind) as url,
            bench.web(url) as (ours, _),
            bench.limit(url) as limit,
            bench.flask("tests.benchmarks.baseline:application", url) as baseline,
        ):
            for connections in bench.size((16, 64), (4,)):
                ports = {OURS: ours, LIMIT: limit, BASELINE: baseline}
                contenders = {name: sender(bench, port, connections) for name, port in ports.items()}
                yield Row(f"acknowledge, {kind}, {connections} connections, {GENERATOR}", contenders, marks)


def sender(bench: Bench, port: int, connections: int) -> Callable[[], Sample]:
    """Return what sends new deliveries to `port` for some seconds."""
    seconds = bench.size(4, 1)

    def send() -> Sample:
        bench.empty_redis()
        return send_for(seconds, port, signed(int(seconds * MOST_PER_SECOND)), connections)

    return send
