"""Every benchmark row still runs and gives numbers. Their values are not checked."""

import math
from collections.abc import Iterator

import pytest

from tests.benchmarks.rows import ROWS
from tests.benchmarks.runner import measure
from tests.benchmarks.servers import Bench, servers

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]  # a registry that does not answer takes minutes


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with servers(tiny=True) as made:
        yield made


@pytest.mark.parametrize("name", ROWS)
def test_a_row_runs_and_gives_numbers(bench: Bench, name: str) -> None:
    results = [one for row in ROWS[name](bench) for one in measure(row, 1, print)]
    assert results
    assert all(math.isfinite(number) for one in results for number in (one.ratio, *one.medians.values()))
