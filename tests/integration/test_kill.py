"""kill -9 and FLUSHALL in the middle of a batch: after a restart every event is applied once."""

import threading
from collections.abc import Callable

import pytest
from redis import Redis
from sqlalchemy import Engine

from models.tables import Event
from tests.support import JSON, differences, mirrored, statuses
from tests.support.inbox import count, held_in_mid_batch, let_time_pass, pending
from tests.support.processes import Commands, Valkey, alive, eventually
from tests.support.stories import company_life, delivered, mirror_of, store, written_once
from worker.bootstrap import endpoint_redis
from worker.inbox.store import accept_webhooks
from worker.queue.doorbell import DRAIN, Doorbell

pytestmark = pytest.mark.long


class Feeder(threading.Thread):
    """Stores events as the webhook endpoint does, every third one twice, while Redis fails."""

    def __init__(self, engine: Engine, redis: Redis, events: list[JSON]) -> None:
        super().__init__(daemon=True)
        self._engine, self._redis, self._events = engine, redis, events
        self.twice = events[::3]

    def run(self) -> None:
        bell = Doorbell(self._redis, DRAIN)
        for event in sorted(self._events + self.twice, key=lambda event: event["id"]):
            accept_webhooks(self._engine, [delivered(event)])
            bell.ring()


def test_kill_9_of_lanes_supervisor_and_valkey_loses_no_event(
    db_url: str, engine: Engine, valkey: Valkey, commands: Commands, make_database: Callable[[str], str]
) -> None:
    story, truth = company_life(2400)
    expected = mirror_of(story, make_database)
    commands.settings |= {"DATABASE_URL": db_url, "REDIS_URL": valkey.url, "BATCH_SIZE": 20, "SWEEP_SECONDS": 0.5}
    worker, clock = commands.start("worker"), commands.start("clock")
    store(engine, story[0::4])
    redis = endpoint_redis(valkey.url)
    feeder = Feeder(engine, redis, story[1::4])

    with held_in_mid_batch(engine, worker, 30):  # woken by the sweep: nothing else rings
        for lane in (lanes := worker.lanes()):
            lane.kill()
    feeder.start()
    eventually(lambda: worker.lanes() and not set(worker.lanes()) & set(lanes), 20)  # restarted

    with held_in_mid_batch(engine, worker):
        valkey.flush()

    with held_in_mid_batch(engine, worker):
        valkey.kill()
        valkey.start()

    store(engine, story[2::4])
    with held_in_mid_batch(engine, worker, 30):
        lanes = worker.lanes()
        worker.kill()
    eventually(lambda: not any(map(alive, lanes)), 30)  # their supervisor is gone

    feeder.join()
    store(engine, story[3::4])
    worker = commands.start("worker")
    let_time_pass(engine)
    eventually(lambda: pending(engine) == 0, 40)
    assert statuses(engine) == {"done": len(story)}
    assert count(engine, Event.attempts > 0) == 0
    assert count(engine, Event.deliveries == 2) == len(feeder.twice)
    assert sum(mirror != expected[kind] for kind, mirror in mirrored(engine).items()) == 0
    assert differences(engine, truth) == []
    written_once(engine)
    worker.stop()
    clock.stop()
    redis.close()
