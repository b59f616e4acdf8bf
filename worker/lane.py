"""One worker process: `python -m worker.lane LANE`, started and watched by `workos-sync worker`."""

import sys
import threading
from collections.abc import Callable
from types import FrameType

import structlog

from worker.embedded import redis_url
from worker.jobs import DRAIN, REPAIR, drain_job, make_worker, repair_job
from worker.logs import configure
from worker.repair import bind, connect, repair
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
    functions = {lane: _function(lane, wiring, stopping)}
    end_with_parent()
    log.info("worker_started", lane=lane)
    worker = make_worker(wiring.redis, lane, functions)
    stop_rq: Callable[[int, FrameType | None], None] = worker.request_stop

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.set()
        stop_rq(number, frame)

    worker.request_stop = stop  # type: ignore[method-assign]  # so that a long run leaves off between two pages
    worker.work(logging_level="WARNING")


def _function(lane: str, wiring: Wiring, stopping: threading.Event) -> Callable[[], None]:
    if lane == DRAIN:
        return drain_job(wiring.engine, wiring.settings.policy(), wiring.bell)
    if lane != REPAIR:
        raise ValueError(f"there is no lane {lane}")
    directory = connect(wiring.settings, wiring.redis)

    def run() -> None:
        bind(wiring.engine, directory, wiring.settings)
        repair(wiring.engine, directory, wiring.settings, wiring.bell, stopping.is_set)

    return repair_job(run, wiring.repair_bell)


if __name__ == "__main__":
    main(*sys.argv[1:])
