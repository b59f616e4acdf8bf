"""All rows of the table, by name."""

from collections.abc import Callable, Iterator, Mapping

from tests.benchmarks import acknowledge, drain, spike
from tests.benchmarks.runner import Row
from tests.benchmarks.servers import Bench

ROWS: Mapping[str, Callable[[Bench], Iterator[Row]]] = {
    "acknowledge": acknowledge.rows,
    "spike": spike.rows,
    "drain": drain.rows,
}
"""Name → what yields its rows, and keeps what they need for as long as they are measured."""
