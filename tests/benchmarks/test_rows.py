"""Benchmark rows still run and give numbers. Their values are not checked."""

import math
from collections.abc import Iterator

import pytest

from tests.benchmarks.rows import ROWS
from tests.benchmarks.runner import measure
from tests.benchmarks.servers import Bench, servers

SLOW = {"acknowledge", "idle", "memory", "peer", "peer-correctness", "traces"}
"""Rows that take ten seconds or more even if tiny. `make bench ARGS="--tiny --rounds 1"` runs them too."""

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with servers(tiny=True) as made:
        yield made


@pytest.mark.parametrize("name", [name for name in ROWS if name not in SLOW])
def test_a_row_runs_and_gives_numbers(bench: Bench, name: str) -> None:
    results = [one for row in ROWS[name](bench) for one in measure(row, 1, print)]
    assert results
    assert all(math.isfinite(number) for one in results for number in (one.ratio, *one.medians.values()))
