"""The benchmarks are kept alive: every row still runs and gives numbers. What they are, is not looked at."""

import math
from collections.abc import Iterator

import pytest

from tests.benchmarks.rows import ROWS
from tests.benchmarks.runner import measure
from tests.benchmarks.servers import Bench, servers

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with servers(tiny=True) as made:
        yield made


@pytest.mark.parametrize("name", ROWS)
def test_a_row_still_runs_and_gives_numbers(bench: Bench, name: str) -> None:
    standings = [one for row in ROWS[name](bench) for one in measure(row, 1, print)]
    assert standings
    assert all(math.isfinite(number) for one in standings for number in (one.ratio, *one.medians.values()))
