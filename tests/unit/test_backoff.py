"""The wait before the next attempt never shrinks and never exceeds its maximum."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.backoff import backoff

ATTEMPTS = st.integers(min_value=0, max_value=10**30)
SECONDS = st.floats(min_value=0.001, max_value=1e9)


@given(ATTEMPTS, ATTEMPTS, SECONDS, SECONDS)
def test_the_wait_never_shrinks_and_is_bounded(one: int, other: int, first: float, maximum: float) -> None:
    fewer, more = sorted((one, other))
    shorter, longer = backoff(fewer, first, maximum), backoff(more, first, maximum)
    assert min(first, maximum) <= shorter <= longer <= maximum


@given(SECONDS, SECONDS)
def test_the_wait_reaches_its_maximum(first: float, maximum: float) -> None:
    assert backoff(10**30, first, maximum) == maximum


@pytest.mark.parametrize(
    ("attempts", "seconds"), [(0, 1.0), (1, 1.0), (2, 2.0), (3, 4.0), (12, 2048.0), (13, 3600.0), (10**9, 3600.0)]
)
def test_the_wait_doubles(attempts: int, seconds: float) -> None:
    assert backoff(attempts, 1.0, 3600.0) == seconds
