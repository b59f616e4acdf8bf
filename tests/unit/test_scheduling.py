"""The order in which xdist workers run the tests."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.scheduling import long_tests_first


def items(*modules: tuple[str, set[str], int]) -> list[Any]:
    """Tests as pytest collects them: of each module its path, its markers, and their number."""
    return [
        SimpleNamespace(
            path=Path(path), name=f"{path}-{place}", get_closest_marker=lambda name, m=markers: name in m or None
        )
        for path, markers, number in modules
        for place in range(number)
    ]


@pytest.mark.parametrize("workers", [2, 3, 4])
def test_each_worker_begins_with_its_long_tests_and_none_is_left_out(workers: int) -> None:
    collected = items(("quick", set(), 60), ("one", {"long"}, 3), ("timed", {"long", "alone"}, 4), ("two", {"long"}, 5))
    ordered = long_tests_first(collected, workers)
    assert sorted(item.name for item in ordered) == sorted(item.name for item in collected)
    assert {item.path.name for item in ordered[:4]} == {"timed"}
    size = len(collected) // workers
    assert [item.path.name for item in ordered[4:7]] == ["one"] * 3
    assert [item.path.name for item in ordered[size : size + 6]] == ["quick"] + ["two"] * 5
    assert ordered[-1].path.name == "quick"


def test_more_long_tests_than_a_worker_has_places_for() -> None:
    collected = items(("long", {"long"}, 9), ("quick", set(), 1))
    assert sorted(map(id, long_tests_first(collected, 4))) == sorted(map(id, collected))
