"""What counts as flat in a soak."""

import pytest

from tests.benchmarks.steady import steady


def test_what_stays_within_a_tenth_is_flat_and_what_grows_on_is_not() -> None:
    looks = [{"web PSS MB": 100 + place / 30, "worker PSS MB": 100.0 + place} for place in range(90)]
    assert {one.name: one.flat for one in steady(looks)} == {"web PSS MB": True, "worker PSS MB": False}


def test_a_single_peak_is_no_growth_and_a_small_number_may_double() -> None:
    looks = [{"lag s": 9.0 if place == 80 else 0.1, "Valkey MB": 2.0 + place / 45} for place in range(90)]
    assert all(one.flat for one in steady(looks))


def test_a_process_that_was_not_there_all_the_time_is_not_flat() -> None:
    looks = [{"lag s": 0.0} | ({"web PSS MB": 1.0} if place < 50 else {}) for place in range(90)]
    assert {one.name: one.flat for one in steady(looks)} == {"lag s": True, "web PSS MB": False}


def test_too_few_looks_tell_nothing() -> None:
    with pytest.raises(ValueError, match="three looks"):
        steady([{"lag s": 0.0}] * 2)
