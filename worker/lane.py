"""One worker process: `python -m worker.lane LANE`, started and watched by `workos-sync worker`."""

import sys

import structlog

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
    make_worker(wiring.redis, lane, functions).work(logging_level="WARNING")


if __name__ == "__main__":
    main(*sys.argv[1:])
