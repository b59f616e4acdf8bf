"""All rows of the table, by name."""

from collections.abc import Callable, Iterator, Mapping

from tests.benchmarks import (
    acknowledge,
    burst,
    drain,
    first_import,
    growth,
    idle,
    latency,
    memory,
    queries,
    removal,
    resync,
    resync_bare,
    spike,
    start,
    traces,
    two_workers,
    upgrade,
)
from tests.benchmarks.peers import correctness, rates
from tests.benchmarks.runner import Row
from tests.benchmarks.servers import Bench

ROWS: Mapping[str, Callable[[Bench], Iterator[Row]]] = {
    "acknowledge": acknowledge.rows,
    "spike": spike.rows,
    "drain": drain.rows,
    "two_workers": two_workers.rows,
    "latency": latency.rows,
    "removal": removal.rows,
    "idle": idle.rows,
    "burst": burst.rows,
    "resync": resync.rows,
    "resync_bare": resync_bare.rows,
    "first_import": first_import.rows,
    "growth": growth.rows,
    "memory": memory.rows,
    "queries": queries.rows,
    "start": start.rows,
    "traces": traces.rows,
    "upgrade": upgrade.rows,
    "peer": rates.rows,
    "peer-correctness": correctness.rows,
}
"""Name → what yields its rows, and keeps what they need for as long as they are measured."""
