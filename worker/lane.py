"""One worker process: `python -m worker.lane LANE`, started and watched by `workos-sync worker`."""

import sys

import structlog
from redis.exceptions import RedisError
from rq.exceptions import StopRequested

from worker.embedded import redis_url
from worker.jobs import DRAIN, drain_job, make_worker
from worker.logs import configure
from worker.settings import load_settings
from worker.supervisor import end_with_parent
from worker.wiring import wire

log = structlog.get_logger()


def main(lane: str = DRAIN) -> None:
    """Work on `lane` until stopped, or until Redis is away (the supervisor starts another)."""
    settings = load_settings()
    configure(settings.log_format)
    wiring = wire(settings, redis_url(settings))
    functions = {DRAIN: drain_job(wiring.engine, settings.policy(), wiring.bell)}
    end_with_parent()
    log.info("worker_started", lane=lane)
    try:
        make_worker(wiring.redis, lane, functions).work(logging_level="WARNING")
    except StopRequested:
        log.info("worker_stopped", lane=lane)  # before it had begun
    except RedisError as error:
        log.warning("redis_lost", lane=lane, error=type(error).__name__)
        sys.exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
