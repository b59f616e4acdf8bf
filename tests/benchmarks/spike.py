"""Spike: very many deliveries at once from very many connections."""

from collections.abc import Iterator

from tests.benchmarks.deliveries import send, signed
from tests.benchmarks.runner import OURS, Mark, Row, Sample
from tests.benchmarks.servers import Bench

MARKS = [Mark("failed", most=0), Mark("later than 5 s", most=0), Mark("p99 ms", most=150), Mark("deliveries/s")]


def rows(bench: Bench) -> Iterator[Row]:
    """Yield one row for each kind of database."""
    number, connections = bench.size((20_000, 200), (200, 20))
    for kind in bench.kinds:
        with bench.database(kind) as url, bench.web(url) as (port, _):

            def ours(port: int = port) -> Sample:
                bench.empty_redis()
                return send(port, signed(number), connections)

            what = f"spike, {kind}: {number:,} from {connections} connections, a client on bare sockets (asyncio)"
            yield Row(what, {OURS: ours}, MARKS)
