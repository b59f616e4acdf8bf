"""Limits how often a line is logged."""

import time

LOG_SECONDS = 10.0
"""Minimum time between two log lines of a `LogThrottle`."""


class LogThrottle:
    """Returns true at most once in `LOG_SECONDS`: for log lines that others can cause at any rate."""

    def __init__(self) -> None:
        self._last = -LOG_SECONDS

    def __call__(self) -> bool:
        """Return whether to log now."""
        now = time.monotonic()
        if now - self._last < LOG_SECONDS:
            return False
        self._last = now
        return True
