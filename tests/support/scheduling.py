"""How xdist workers share the tests: long ones first, and tests that measure time without any other beside them."""

import fcntl
import itertools
import math
from collections import defaultdict
from pathlib import Path

import pytest

MANY_CASES = 4
"""Cases from which on a test runs each case on one database only."""


def long_tests_first(items: list[pytest.Item], workers: int) -> list[pytest.Item]:
    """Return the tests so that each worker begins with its share of the long ones.

    `--dist=worksteal` cuts the list into one piece for each worker; a worker that is done takes over the end of
    another's piece. The tests marked `alone` come first: nobody takes them over, so the other workers wait only once.
    Then come the modules in the order of their time-outs: a drill that begins last would leave all other workers idle.
    """
    alone, long, rest = ([item for item in items if _class_of(item) == name] for name in ("alone", "long", "rest"))
    modules = [list(group) for _, group in itertools.groupby(long, key=lambda item: item.path)]
    modules.sort(key=lambda module: max(map(_timeout, module)), reverse=True)
    ordered: list[pytest.Item] = []
    for worker in range(workers):
        size = (len(items) - len(ordered)) // (workers - worker)
        first = rest[:1] if worker else alone  # a quick one: the tests that are alone wait until it has ended
        piece = [*first, *itertools.chain.from_iterable(modules[worker::workers])]
        others = rest[1:] if worker else rest
        number = max(0, size - len(piece)) if worker < workers - 1 else len(others)
        ordered += piece + others[:number]
        rest = others[number:]
    return ordered


def one_database_each(
    items: list[pytest.Item], many_cases: int = MANY_CASES
) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """Split the tests into those to run and those to leave out.

    Of a test with at least `many_cases` cases on both databases, each case runs on one: on each database in turn. All
    other tests run on both.
    """
    cases: dict[object, dict[str, list[pytest.Item]]] = defaultdict(lambda: defaultdict(list))
    for item in items:
        found = getattr(item, "callspec", None)
        if found is not None and "db_url" in found.params:
            case = found.id.replace(found.params["db_url"], "", 1)
            cases[item.path, getattr(item, "originalname", "")][case].append(item)
    left_out = [
        item
        for number, of_test in enumerate(cases.values())
        if len(of_test) >= many_cases
        for place, on_each in enumerate(of_test.values(), number)
        if len(on_each) == 2
        for item in on_each[place % 2 :: 2]
    ]
    ids = set(map(id, left_out))
    return [item for item in items if id(item) not in ids], left_out


def _class_of(item: pytest.Item) -> str:
    return next((name for name in ("alone", "long") if item.get_closest_marker(name)), "rest")


def _timeout(item: pytest.Item) -> float:
    """The seconds that a test may take, if it says so itself; 0 there means any number."""
    marker = item.get_closest_marker("timeout")
    return 0.0 if marker is None else float(marker.args[0]) or math.inf


class Turns:
    """Lets a test run while no other worker runs any. Files are locked, so a worker that dies blocks nobody."""

    def __init__(self, folder: Path) -> None:
        self._entrance = (folder / "entrance").open("w")
        self._running = (folder / "running").open("w")
        self._exclusive = False

    def begin(self, *, alone: bool) -> None:
        """Wait until a test may run. Tests that are alone follow each other without letting others between."""
        if self._exclusive and alone:
            return
        self._end()
        fcntl.flock(self._entrance, fcntl.LOCK_EX)  # or workers that come and go would never let one be alone
        fcntl.flock(self._running, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(self._entrance, fcntl.LOCK_UN)
        self._exclusive = alone

    def end(self) -> None:
        """Let others run, unless the next test of this worker may be alone too."""
        if not self._exclusive:
            self._end()

    def _end(self) -> None:
        fcntl.flock(self._running, fcntl.LOCK_UN)
        self._exclusive = False

    def close(self) -> None:
        """Let others run."""
        self._entrance.close()
        self._running.close()
