"""One worker process: `python -m worker.lane LANE`, started and watched by `workos-sync worker`."""

import sys
import threading
from collections.abc import Callable
from functools import partial
from types import FrameType

import structlog
from redis.exceptions import RedisError
from rq import SimpleWorker
from rq.exceptions import StopRequested

from worker.counters import ACCEPTED_TO_APPLIED
from worker.directory import UnreadableError
from worker.embedded import redis_url
from worker.errors import ConfigurationError
from worker.jobs import DRAIN, REPAIR, drain_job, make_worker, repair_job
from worker.logs import configure
from worker.repair import connect, repair
from worker.settings import load_settings
from worker.supervisor import end_with_parent
from worker.wiring import Wiring, wire

log = structlog.get_logger()


def main(lane: str = DRAIN) -> None:
    """Work on `lane` until stopped, or until Redis is away (the supervisor starts another)."""
    settings = load_settings()
    configure(settings.log_format)
    wiring = wire(settings, redis_url(settings))
    stopping = threading.Event()
    function = _function(lane, wiring, stopping)
    end_with_parent()
    log.info("worker_started", lane=lane)
    try:
        worker = make_worker(wiring.redis, lane, {lane: function})
        _tell_of_stop(worker, stopping)
        worker.work(logging_level="WARNING")
    except StopRequested:
        log.info("worker_stopped", lane=lane)  # before it had begun
    except RedisError as error:
        log.warning("redis_lost", lane=lane, error=type(error).__name__)
        sys.exit(1)


def _function(lane: str, wiring: Wiring, stopping: threading.Event) -> Callable[[], None]:
    settings = wiring.settings
    if lane == DRAIN:
        observe = partial(wiring.counters.observe, ACCEPTED_TO_APPLIED)
        return drain_job(wiring.engine, settings.policy(), wiring.bell, observe)
    if lane != REPAIR:
        raise ValueError(f"there is no lane {lane}")
    directory = connect(settings, wiring.redis, wiring.counters) if settings.repairs else None

    def run() -> None:
        try:
            repair(wiring.engine, directory, settings, wiring.bell, stopping.is_set)
        except (ConfigurationError, UnreadableError) as error:
            # What is left to do stays where it is; the clock rings for it again.
            log.warning("repair_stopped", why=str(error))

    return repair_job(run, wiring.repair_bell)


def _tell_of_stop(worker: SimpleWorker, stopping: threading.Event) -> None:
    """Set `stopping` when the worker is asked to stop, so that a resync leaves off between two pages."""
    stop_rq: Callable[[int, FrameType | None], None] = worker.request_stop

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.set()
        stop_rq(number, frame)

    worker.request_stop = stop  # type: ignore[method-assign]


if __name__ == "__main__":
    main(*sys.argv[1:])
