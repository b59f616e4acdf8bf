"""Group commit: who waits for the writer is written by it, each exactly once, and hears of its failure."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from worker.together import Together


def test_what_comes_while_another_writes_is_written_together_and_in_order() -> None:
    begun, go_on = threading.Event(), threading.Event()
    written: list[list[int]] = []

    def write(items: list[int]) -> None:
        written.append(items)
        if len(written) == 1:
            begun.set()
            assert go_on.wait(10)

    together = Together(write, 3)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(together, 0, 1)
        assert begun.wait(10)
        others = []
        for item in range(1, 6):
            others.append(pool.submit(together, item, 1))
            while len(together._waiting) < item:
                threading.Event().wait(0.001)
        go_on.set()
        for done in (first, *others):
            done.result(10)
    assert written == [[0], [1, 2, 3], [4, 5]]


def test_one_that_is_larger_than_a_batch_is_written_alone() -> None:
    written: list[list[str]] = []
    Together(written.append, 3)("large", 100)
    assert written == [["large"]]


def test_a_failure_reaches_all_whose_writing_it_was_and_no_one_else() -> None:
    failing = [True]

    def write(items: list[str]) -> None:
        if failing.pop() if failing else False:
            raise RuntimeError("no")

    together = Together(write, 3)
    with pytest.raises(RuntimeError):
        together("first", 1)
    together("second", 1)
