"""How the outage drill judges answers."""

import pytest

from tests.drill.outage import AFTER, BEFORE, BOUND, STALE, Answer, Outage, judge

OUTAGE = Outage(began_at=100.0, changed_at=101.0, ended_at=200.0)


def answer(at: float, said: str, age: float) -> Answer:
    return Answer(at, at, said, age, age)


RIGHT = [
    answer(99, BEFORE, 16),
    answer(108, BEFORE, BOUND),
    answer(109, STALE, BOUND + 1),
    answer(199, STALE, 116),
    answer(205, STALE, 122),
    answer(207, AFTER, 17),
    answer(230, AFTER, 20),
]


def test_right_answers_are_right() -> None:
    assert judge(RIGHT, OUTAGE) == []


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (answer(108, BEFORE, BOUND + 0.1), "an answer was older than its bound"),
        (answer(108, STALE, BOUND - 2), "an answer was stale before its bound"),
        (answer(126.1, BEFORE, 20), "an outdated yes"),
        (answer(99, STALE, BOUND + 1), "before the outage: stale"),
        (answer(126, AFTER, 20), "not stale during the outage: no access"),
        (answer(216, STALE, BOUND + 1), "not right after the outage: stale"),
        (answer(216, BEFORE, 20), "not right after the outage: member"),
    ],
)
def test_each_wrong_answer_is_found(wrong: Answer, why: str) -> None:
    assert why in judge([wrong], OUTAGE)
