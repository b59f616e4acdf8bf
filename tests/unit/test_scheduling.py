"""The order in which xdist workers run the tests."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.scheduling import long_tests_first, one_database_each


def items(*modules: tuple[str, set[str], int], **timeouts: int) -> list[Any]:
    """Tests as pytest collects them: of each module its path, its markers, their number, and perhaps its time-out."""

    def marker(path: str, markers: set[str], name: str) -> object:
        if name == "timeout":
            return SimpleNamespace(args=(timeouts[path],)) if path in timeouts else None
        return name in markers or None

    return [
        SimpleNamespace(path=Path(path), name=f"{path}-{place}", get_closest_marker=partial(marker, path, markers))
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


def test_long_tests_with_a_longer_time_out_come_first() -> None:
    names = ("short", "drill", "histories", "slow")
    collected = items(*((name, {"long"}, 2) for name in names), drill=1800, histories=0, slow=240)
    assert [item.path.name for item in long_tests_first(collected, 1)[::2]] == ["histories", "drill", "slow", "short"]


def test_more_long_tests_than_a_worker_has_places_for() -> None:
    collected = items(("long", {"long"}, 9), ("quick", set(), 1))
    assert sorted(map(id, long_tests_first(collected, 4))) == sorted(map(id, collected))


def on_both(name: str, cases: int) -> list[Any]:
    """A test with this many cases, each on two databases, as pytest collects it."""
    return [
        SimpleNamespace(
            path=Path("module"),
            originalname=name,
            name=f"{name}-{case}-{database}",
            callspec=SimpleNamespace(params={"db_url": database}, id=f"{database}-{case}"),
        )
        for case in range(cases)
        for database in ("sqlite", "postgresql")
    ]


def test_each_case_of_a_large_test_runs_on_one_database_in_turn() -> None:
    few, many, other = on_both("few", 3), on_both("many", 5), items(("other", set(), 1))
    kept, left_out = one_database_each(few + many + other)
    assert [item.name for item in kept] == [
        *(item.name for item in few),
        *("many-0-sqlite", "many-1-postgresql", "many-2-sqlite", "many-3-postgresql", "many-4-sqlite"),
        "other-0",
    ]
    assert len(left_out) == 5


def test_every_test_can_run_on_one_database_and_each_database_has_its_share() -> None:
    kept, _ = one_database_each([*on_both("one", 1), *on_both("two", 1), *on_both("three", 2)], 1)
    assert [item.name for item in kept] == ["one-0-postgresql", "two-0-sqlite", "three-0-postgresql", "three-1-sqlite"]
