"""Which series of a soak count as flat."""

import pytest

from tests.benchmarks.steady import steady


def test_a_series_within_a_tenth_is_flat_and_a_growing_one_is_not() -> None:
    samples = [{"web PSS MB": 100 + place / 30, "worker PSS MB": 100.0 + place} for place in range(90)]
    assert {one.name: one.flat for one in steady(samples)} == {"web PSS MB": True, "worker PSS MB": False}


def test_a_single_peak_is_not_growth_and_a_small_number_may_double() -> None:
    samples = [{"lag s": 9.0 if place == 80 else 0.1, "Valkey MB": 2.0 + place / 45} for place in range(90)]
    assert all(one.flat for one in steady(samples))


def test_a_series_with_gaps_is_not_flat() -> None:
    samples = [{"lag s": 0.0} | ({"web PSS MB": 1.0} if place < 50 else {}) for place in range(90)]
    assert {one.name: one.flat for one in steady(samples)} == {"lag s": True, "web PSS MB": False}


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="three samples"):
        steady([{"lag s": 0.0}] * 2)
