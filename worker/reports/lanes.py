"""The lanes with their queued jobs and workers, and what is wrong with Redis."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from redis import Redis
from redis.exceptions import RedisError
from rq import Queue
from rq.serializers import JSONSerializer

from worker.bootstrap import claimed_by
from worker.queue.doorbell import LANES, REPAIR, queue_name
from worker.queue.heartbeat import worker_states
from worker.redis_client import NotPrimaryError, require_writable, what_is_wrong


@dataclass(frozen=True, slots=True)
class Lane:
    """A lane: its queued jobs and the states of its workers. Both are None if Redis is unavailable."""

    name: str
    queued: int | None
    workers: list[str] | None
    needed: bool = True
    """Whether the settings need workers here. Other lanes are listed only if jobs are queued there."""


class RedisTrouble(NamedTuple):
    """Why Redis cannot wake our workers: what is wrong, the remedy, and the name of the condition."""

    saw: str
    remedy: str
    condition: str


def read_redis(redis: Redis, names: Sequence[str]) -> tuple[str | None, list[Lane], RedisTrouble | None]:
    """Return the id of the database that uses Redis, the lanes, and why Redis cannot wake workers, if it cannot."""
    owner = None
    try:
        require_writable(redis)
        owner = claimed_by(redis)
        return owner, _lanes(redis, names), None
    except RedisError as error:
        name = "redis_replica" if isinstance(error, NotPrimaryError) else "redis_away"
        return owner, unknown_lanes(names), RedisTrouble(*what_is_wrong(error), name)


def _lanes(redis: Redis, names: Sequence[str]) -> list[Lane]:
    """Return these lanes, and any other in which jobs are queued."""
    all_names = [*names, *(name for name in LANES if name not in names)]
    with redis.pipeline(transaction=False) as pipeline:
        for name in all_names:
            pipeline.llen(Queue(queue_name(name), connection=redis, serializer=JSONSerializer).key)
        queued: dict[str, int] = dict(zip(all_names, pipeline.execute(), strict=True))
    states = worker_states(redis, all_names)
    lanes = (Lane(name, queued[name], states[name], needed=name in names) for name in all_names)
    return [lane for lane in lanes if lane.needed or lane.queued]


def unknown_lanes(names: Sequence[str]) -> list[Lane]:
    """Return these lanes as they are shown while Redis is unavailable."""
    return [Lane(name, None, None) for name in names]


def repair_workers(redis: Redis) -> list[str] | None:
    """Return the states of the workers that run resyncs and replays; None if Redis is unavailable."""
    try:
        require_writable(redis)
        return worker_states(redis, [REPAIR])[REPAIR]
    except RedisError:
        return None
