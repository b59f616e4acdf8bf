"""Counters of all processes, kept in Redis, so that any process can show the totals.

Each process counts in memory and adds its counts to Redis once a second, so that counting costs a delivery nothing.
Counters start at zero again when Redis is flushed, as after a restart. A process that is killed loses its last second
of counts. Nothing but metrics depends on them.
"""

import atexit
import json
import threading
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

import structlog
from redis import Redis
from redis.exceptions import RedisError

log = structlog.get_logger()

FLUSH_SECONDS = 1.0
CLOSE_SECONDS = 5.0
COUNTS = "workos-sync:counts"
TIMES = "workos-sync:times"

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0)
"""Upper ends, in seconds, of the histogram of `accepted_to_applied`."""
INFINITY = "+Inf"
ACCEPTED_TO_APPLIED = "accepted_to_applied"
REFUSED_SINCE_VALID = "refused_since_valid"
"""Counts refused deliveries by reason, one of `REFUSALS`, since the last valid delivery."""
REFUSALS = ("address", "missing", "mismatch", "time", "path")


class Name(NamedTuple):
    """A counter's name and its label values, in a fixed order."""

    name: str
    labels: tuple[str, ...] = ()


class Counters:
    """Counts in memory, and adds the counts to Redis from a thread. While Redis is unavailable, they wait in memory."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._lock = threading.Lock()
        self._counts = defaultdict[Name, float](float)
        self._times: dict[Name, float] = {}
        self._cleared: set[Name] = set()
        self._away = False
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, name: str, *labels: str, number: float = 1.0) -> None:
        """Add `number` to a counter."""
        with self._lock:
            self._counts[Name(name, labels)] += number
            self._start()

    def note_time(self, name: str, *labels: str) -> None:
        """Record that something happened now (seconds since the epoch)."""
        with self._lock:
            self._times[Name(name, labels)] = time.time()
            self._start()

    def clear(self, *names: Name) -> None:
        """Set counters to 0, also the counts of other processes."""
        with self._lock:
            for name in names:
                self._counts.pop(name, None)
            self._cleared.update(names)
            self._start()

    def observe(self, name: str, seconds: Iterable[float]) -> None:
        """Count durations in a histogram: a bucket's upper end is its label, the sum is another counter."""
        for value in seconds:
            place = bisect_left(BUCKETS, value)
            self.add(f"{name}_bucket", str(BUCKETS[place]) if place < len(BUCKETS) else INFINITY)
            self.add(f"{name}_sum", number=max(0.0, value))

    def hand_over(self) -> None:
        """Add the counts since the last call to Redis; keep them while Redis is unavailable."""
        with self._lock:
            counts, times, cleared = self._counts, self._times, self._cleared
            self._counts, self._times, self._cleared = defaultdict(float), {}, set()
        if not counts and not times and not cleared:
            return
        try:
            with self._redis.pipeline(transaction=True) as pipeline:
                if cleared:
                    pipeline.hdel(COUNTS, *map(json.dumps, cleared))
                for key, number in counts.items():
                    pipeline.hincrbyfloat(COUNTS, json.dumps(key), number)
                for key, at in times.items():
                    pipeline.hset(TIMES, json.dumps(key), str(at))
                pipeline.execute()
            self._away = False
        except RedisError as error:
            if not self._away:  # logged once, not every second
                log.warning("counts_kept", error=type(error).__name__)
            self._away = True
            with self._lock:
                for key, number in counts.items():
                    if key not in self._cleared:
                        self._counts[key] += number
                self._cleared |= cleared
                self._times = times | self._times

    def close(self) -> None:
        """Add the remaining counts to Redis, after a flush that is in progress."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join(CLOSE_SECONDS)
        self.hand_over()
        atexit.unregister(self.close)

    def _start(self) -> None:
        """Start the thread with the first count: a process that forks earlier has no thread to lose."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True, name="counters")
            self._thread.start()
            atexit.register(self.close)

    def _run(self) -> None:
        while not self._closed.wait(FLUSH_SECONDS):
            self.hand_over()


def counted(redis: Redis) -> dict[Name, float]:
    """Return all counts of all processes; raises `redis.exceptions.RedisError`."""
    return _read(redis, COUNTS)


def noted(redis: Redis) -> dict[Name, float]:
    """Return the times recorded by `note_time`, in seconds since the epoch; raises `redis.exceptions.RedisError`."""
    return _read(redis, TIMES)


def _read(redis: Redis, key: str) -> dict[Name, float]:
    stored = ((json.loads(field), float(value)) for field, value in redis.hgetall(key).items())
    return {Name(name, tuple(labels)): value for (name, labels), value in stored}
