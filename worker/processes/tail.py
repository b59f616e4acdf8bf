"""Runs the tail of the events API: in a process of `workos-sync worker`, or in a thread of `workos-sync up`.

It is not a lane of RQ: it reads every few seconds, whether or not anything wakes it.
"""

import os
import threading
from contextlib import closing

import structlog

from worker.bootstrap import Services
from worker.metrics import Place
from worker.queue.doorbell import DRAIN, Doorbell
from worker.repair.environment import connect
from worker.repair.tail import TAIL_ID, TAILS, EventTail
from worker.workos_api.bucket import TAIL, Buckets

log = structlog.get_logger()

TIMEOUT_SECONDS = 10.0
"""For one call. It is not retried: the next read follows soon, and a stop must not wait."""
TAKEOVER_SECONDS = 5.0
"""A process that may not tail looks at least this often whether the lease is free."""


def run(services: Services, stop: threading.Event) -> None:
    """Tail the events API until `stop` is set, while no other process does."""
    settings = services.settings
    structlog.contextvars.bind_contextvars(lane="tail")
    redis = services.report_redis  # with short time-outs: a frozen Redis must not delay a stop
    bell = Doorbell(redis, DRAIN)
    buckets = Buckets(redis, settings.workos_rate_share, stop.wait, own=TAIL)
    connection = connect(settings, redis, services.counters, buckets, timeout_seconds=TIMEOUT_SECONDS, max_tries=1)
    log.info("tail_started", pid=os.getpid())
    with closing(connection) as workos:
        while not stop.is_set():
            with services.counters.contained(Place.LANE, "tail"), TAILS.lease(services.engine, TAIL_ID) as lease:
                if lease is not None:
                    EventTail(services.engine, workos, lease, settings, bell, services.tail_bell).follow(stop)
            stop.wait(min(settings.tail_seconds, TAKEOVER_SECONDS))
