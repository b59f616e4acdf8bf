"""Exponential back-off."""


def backoff(attempts: int, first: float, maximum: float) -> float:
    """Return the seconds to wait after `attempts` failed attempts: `first` after one, then doubling up to `maximum`."""
    return min(first * 2.0 ** min(max(attempts, 1) - 1, 1000), maximum)
