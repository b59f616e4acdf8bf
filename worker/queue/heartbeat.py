"""Heartbeats of worker processes. Each reports itself to Redis every few seconds, even during a long job.

RQ's own registration is not enough: a process that runs a job does not renew it. Redis keeps it for as long as the job
may take, even after a kill, and loses it when it is flushed.
"""

import threading
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import cast

from redis import Redis
from redis.exceptions import RedisError

from worker.env.redis_keys import redis_key

HEARTBEAT_SECONDS = 2.0
EXPIRE_SECONDS = 12
"""A process that was killed or frozen counts as alive for this long."""


class Heartbeat:
    """Reports a process of a lane as alive, from its own thread, until it is closed.

    Args:
        redis: a client with time-outs of at most `HEARTBEAT_SECONDS`, so that a frozen Redis is tried again soon.
        lane: the lane that the process works for.
        state: returns what the process is doing, such as `idle` or `busy`. Called from the thread.
        report: called with the first error of each series of failures. The next heartbeat is always tried.
    """

    def __init__(
        self,
        redis: Redis,
        lane: str,
        state: Callable[[], str],
        report: Callable[[BaseException], object] = lambda _: None,
    ) -> None:
        self._redis = redis
        self._lane = lane
        self._state = state
        self._report = report
        self._key = f"{_key(lane)}{uuid.uuid4().hex}"
        self._failing = False
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="heartbeat")

    def start(self) -> None:
        """Start the thread, which reports the process at once."""
        self._thread.start()

    def beat(self) -> None:
        """Report the process as alive for `EXPIRE_SECONDS`; raise `redis.exceptions.RedisError` if Redis fails."""
        with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.set(self._key, self._state(), ex=EXPIRE_SECONDS)
            pipeline.sadd(_members(self._lane), self._key)
            pipeline.expire(_members(self._lane), EXPIRE_SECONDS)
            pipeline.execute()

    def close(self) -> None:
        """End the thread, report the process as gone, and close the client."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()
        if not self._failing:  # otherwise the key expires
            with suppress(RedisError):
                self._redis.delete(self._key)
        self._redis.close()

    def _run(self) -> None:
        while not self._closed.is_set():
            self._attempt()
            self._closed.wait(HEARTBEAT_SECONDS)

    def _attempt(self) -> None:
        try:
            self.beat()
            self._failing = False
        except Exception as error:  # noqa: BLE001 - whatever it was, the next beat is tried
            if not self._failing:
                self._report(error)
            self._failing = True


def worker_states(redis: Redis, lanes: Sequence[str]) -> dict[str, list[str]]:
    """Return the states of the living processes of each lane; raise `redis.exceptions.RedisError` if Redis fails.

    A state is a word. Members and states that no process of ours wrote are left out: others may use the same Redis.
    """
    with redis.pipeline(transaction=False) as pipeline:
        for lane in lanes:
            pipeline.smembers(_members(lane))
        members: dict[str, set[bytes]] = dict(zip(lanes, pipeline.execute(), strict=True))
    own = {lane: sorted(key for key in members[lane] if key.startswith(_key(lane).encode())) for lane in lanes}
    keys = [key for lane in lanes for key in own[lane]]
    found = cast("list[bytes | None]", redis.mget(keys)) if keys else []
    states = dict(zip(keys, found, strict=True))
    for lane in lanes:
        if gone := [key for key in members[lane] if states.get(key) is None]:
            redis.srem(_members(lane), *gone)  # a process that is alive after all adds itself again
    words = {key: state.decode() for key, state in states.items() if state is not None and state.isalpha()}
    return {lane: [words[key] for key in own[lane] if key in words] for lane in lanes}


def _key(lane: str) -> str:
    return redis_key(f"worker:{lane}:")


def _members(lane: str) -> str:
    return redis_key(f"workers:{lane}")
