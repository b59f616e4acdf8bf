"""Counters of all processes, kept in Redis, so that any process can show the totals. They also count unexpected errors.

Each process counts in memory and adds its counts to Redis once a second, so that counting costs a delivery nothing.
Counters start at zero again when Redis is flushed, as after a restart. A process that is killed loses its last second
of counts. Only metrics and the conditions about refused deliveries depend on them.
"""

import atexit
import json
import math
import threading
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from typing import NamedTuple

import structlog
from redis import Redis
from redis.exceptions import RedisError, ResponseError

from worker import error_reports
from worker.env.redis_keys import redis_key
from worker.error_handling import describe, is_expected
from worker.errors import stack_of, unexpected
from worker.redis_client import INTERRUPTS, UnexpectedRedisError

log = structlog.get_logger()

FLUSH_SECONDS = 1.0
CLOSE_SECONDS = 5.0
COUNTS = redis_key("counts")
TIMES = redis_key("times")
REFUSED_IN_HOUR = redis_key("refused:{}")
"""Refused deliveries of an hour since the epoch: minute since the epoch → number."""
KEEP_HOURS_SECONDS = 8 * 86400

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0)
"""Upper ends, in seconds, of the histograms."""
INFINITY = "+Inf"
ACCEPTED_TO_APPLIED = "accepted_to_applied"
LOST_TO_REVOKED = "access_lost_to_revoked"
REVOCATION_FAILURES = "revocation_failures"
REFUSED_SINCE_VALID = "refused_since_valid"
"""Counts refused deliveries by reason, one of `REFUSALS`, since the last valid delivery."""
REFUSED = "refused"
"""Counts refused deliveries by reason."""
REFUSALS = ("address", "missing", "mismatch", "time", "path")
UNEXPECTED = "unexpected_errors"


class Place(StrEnum):
    """Where an unexpected error was contained: the label of the metric `unexpected_errors`."""

    TASK = "task"
    """A periodic task of the clock."""
    LANE = "lane"
    """A job, or a worker process outside of its jobs."""
    REQUEST = "request"
    RING = "ring"
    """Waking a worker for a delivery that is already committed."""
    HOOK = "hook"
    COUNTERS = "counters"
    """Adding counts to Redis."""
    METRICS = "metrics"
    READINESS = "readiness"
    """The warnings in the answer of `/readyz`."""
    HEARTBEAT = "heartbeat"
    """Reporting a worker process as alive."""
    SUPERVISOR = "supervisor"
    """Starting a process."""


class Name(NamedTuple):
    """A counter's name and its label values, in a fixed order."""

    name: str
    labels: tuple[str, ...] = ()


class Counters:
    """Counts in memory, and adds the counts to Redis from a thread. While Redis is unavailable, they wait in memory."""

    def __init__(self, redis: Redis, *, in_background: bool = True) -> None:
        """Create counters. Without `in_background`, no thread is started, and counts wait for `hand_over`."""
        self._redis = redis
        self._in_background = in_background
        self._lock = threading.Lock()
        self._sending = threading.Lock()  # or a late `clear` would delete newer counts
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
        """Set counters to 0, also what other processes have added to Redis, but not what they have not added yet."""
        with self._lock:
            for name in names:
                self._counts.pop(name, None)
            self._cleared.update(names)
            self._start()

    def report(self, place: Place, name: str, error: BaseException) -> None:
        """Log an unexpected error without any value, and count it.

        Args:
            place: where it was contained, the label of the metric.
            name: which task, lane, route or hook it was, for the log.
            error: the error.
        """
        cause = (error.__cause__ or error) if isinstance(error, UnexpectedRedisError) else error
        log.error("unexpected_error", place=place, name=name, error=unexpected(cause), stack=stack_of(cause))
        self.add(UNEXPECTED, place)
        error_reports.capture(cause, place=place, name=name)

    def postpone(self, place: Place, name: str, error: BaseException) -> None:
        """Log an error after which the caller tries again later. An unexpected one is reported as `report` does."""
        if is_expected(error):
            log.warning("postponed", place=place, name=name, error=describe(error))
        else:
            self.report(place, name, error)

    @contextmanager
    def contained(self, place: Place, name: str) -> Iterator[None]:
        """Log whatever the block raises, and let the caller go on; it tries again later.

        An expected error, such as an unavailable database, is logged as `postponed` with its reason. Any other is
        reported as `report` does. Signals, and RQ's time limit of a job, pass through.
        """
        try:
            yield
        except INTERRUPTS:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller goes on
            self.postpone(place, name, error)

    def observe(self, name: str, seconds: Iterable[float]) -> None:
        """Count durations in a histogram: a bucket's upper end is its label, the sum is another counter."""
        for value in seconds:
            place = bisect_left(BUCKETS, value)
            self.add(f"{name}_bucket", str(BUCKETS[place]) if place < len(BUCKETS) else INFINITY)
            self.add(f"{name}_sum", number=max(0.0, value))

    def hand_over(self) -> None:
        """Add the counts since the last call to Redis; keep them while Redis is unavailable.

        If Redis counts and its answer is lost, the same counts are added twice.
        """
        with self._sending:
            self._hand_over()

    def _hand_over(self) -> None:
        with self._lock:
            counts, times, cleared = self._counts, self._times, self._cleared
            self._counts, self._times, self._cleared = defaultdict(float), {}, set()
        if not counts and not times and not cleared:
            return
        try:
            failed = self._send(counts, times, cleared)
        except RedisError as error:
            if not self._away:  # logged once, not every second
                log.warning("counts_kept", error=describe(error))
            self._away = True
            self._take_back(counts, times, cleared)
        except Exception as error:  # noqa: BLE001 - the thread must go on
            self._take_back(counts, times, cleared)
            self.report(Place.COUNTERS, "hand_over", error)
        else:
            self._away = False
            self._take_back(failed, {})

    def _send(self, counts: dict[Name, float], times: dict[Name, float], cleared: set[Name]) -> dict[Name, float]:
        """Add counts and times in one transaction; return the counts that Redis refused.

        Redis refuses to add to a value that is not a number, which another program stored; that value is deleted.
        """
        with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.hdel(COUNTS, *map(json.dumps, cleared), "")  # the empty field never exists: HDEL needs one
            for key, number in counts.items():
                pipeline.hincrbyfloat(COUNTS, json.dumps(key), number)
            if refused_now := sum(number for key, number in counts.items() if key.name == REFUSED):
                minute = int(time.time()) // 60
                pipeline.hincrbyfloat(hour := REFUSED_IN_HOUR.format(minute // 60), str(minute), refused_now)
                pipeline.expire(hour, KEEP_HOURS_SECONDS)
            for key, at in times.items():
                pipeline.hset(TIMES, json.dumps(key), str(at))
            answers = pipeline.execute(raise_on_error=False)[1:]
        refused = [isinstance(answer, ResponseError) for answer in answers]
        failed = [key for key, wrong in zip(counts, refused, strict=False) if wrong]
        if any(refused):
            log.warning("counts_refused", number=sum(refused))
            with suppress(RedisError):  # the other counts are added: they must not be taken back
                for stored in (COUNTS, TIMES):
                    if self._redis.type(stored) not in (b"hash", b"none"):
                        self._redis.delete(stored)
                if failed:
                    self._redis.hdel(COUNTS, *map(json.dumps, failed))
        return {key: counts[key] for key in failed}

    def _take_back(self, counts: dict[Name, float], times: dict[Name, float], cleared: Iterable[Name] = ()) -> None:
        """Keep counts and times for the next attempt."""
        with self._lock:
            for key, number in counts.items():
                if key not in self._cleared:
                    self._counts[key] += number
            self._cleared.update(cleared)
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
        if self._thread is None and self._in_background:
            thread = threading.Thread(target=self._run, daemon=True, name="counters")
            with suppress(RuntimeError):  # the system has no more threads: the next count tries again
                thread.start()
                self._thread = thread
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


def refused_by_minute(redis: Redis, first: int, last: int) -> dict[int, int]:
    """Return the number of refused deliveries in the minutes since the epoch from `first` to `last`, at most 8 days.

    Minutes without any are left out. Raises `redis.exceptions.RedisError`.
    """
    with redis.pipeline(transaction=False) as pipeline:
        for hour in range(first // 60, last // 60 + 1):
            pipeline.hgetall(REFUSED_IN_HOUR.format(hour))
        found = {}
        for hour_counts in pipeline.execute():
            for minute, number in hour_counts.items():
                with suppress(ValueError, OverflowError):  # others may write to the same Redis
                    found[int(minute)] = round(float(number))
    return {minute: number for minute, number in found.items() if first <= minute <= last}


def _read(redis: Redis, key: str) -> dict[Name, float]:
    """Return the fields that a process of ours wrote; others may write to the same Redis."""
    found = {}
    for field, value in redis.hgetall(key).items():
        try:
            name, labels = json.loads(field)
            counter, number = Name(str(name), tuple(map(str, labels))), float(value)
            "".join((counter.name, *counter.labels)).encode()  # lone surrogates cannot be shown
        except (TypeError, ValueError, RecursionError):
            continue
        if math.isfinite(number):
            found[counter] = number
    return found
