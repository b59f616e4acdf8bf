"""One worker process, started and supervised by `workos-sync worker`."""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from functools import partial

import structlog
from redis.exceptions import RedisError
from rq.exceptions import StopRequested

from models.tables import AutoJoinMode
from worker import provisioning
from worker.bootstrap import Services, build_services, drain_limits
from worker.errors import ConfigurationError, WorkOSUnavailableError
from worker.hooks.follow import follow
from worker.hooks.targets import targets
from worker.inbox.drain import drain
from worker.metrics import ACCEPTED_TO_APPLIED
from worker.processes.jobs import answered, make_worker
from worker.queue.doorbell import DRAIN, HOOKS, PROVISION, REPAIR
from worker.repair.catch_up import update_complete_to
from worker.repair.environment import connect, require_same_environment
from worker.repair.work import Repair, catch_up_or_resync
from worker.settings import Settings

log = structlog.get_logger()


def work(lane: str, settings: Settings, redis_url: str) -> None:
    """Run the jobs of `lane` until stopped. Exit with 1 if Redis is lost; the supervisor then starts a new process."""
    structlog.contextvars.bind_contextvars(lane=lane)
    with closing(build_services(settings, redis_url)) as services:
        stopping = threading.Event()
        makers = {DRAIN: _drain, REPAIR: _repair, PROVISION: _provision, HOOKS: _hooks}
        function = makers[lane](services, stopping)
        log.info("worker_started", pid=os.getpid())
        try:
            make_worker(services.redis, lane, {lane: function}, stopping).work(logging_level="WARNING")
        except StopRequested:
            log.info("worker_stopped")  # before it had started
        except RedisError as error:
            log.warning("redis_lost", error=type(error).__name__)
            sys.exit(1)


def _drain(services: Services, stopping: threading.Event) -> Callable[[], None]:
    settings, limits = services.settings, drain_limits(services.settings)
    observe = partial(services.counters.observe, ACCEPTED_TO_APPLIED)

    def run() -> None:
        if not drain(services.engine, limits, observe, stopping.is_set):
            services.bell.ring()
        # Only for speed: the clock rings too.
        if settings.http_hooks:
            services.hooks_bell.ring()
        if settings.auto_join is AutoJoinMode.PROVISION and provisioning.waiting(services.engine):
            services.provision_bell.ring()

    return answered(run, services.bell)


def _repair(services: Services, stopping: threading.Event) -> Callable[[], None]:
    settings = services.settings
    workos = connect(settings, services.redis, services.counters) if settings.repairs else None
    repair = Repair(services.engine, workos, settings, services.bell, stopping.is_set)
    return answered(_unavailable_logged()(repair.all), services.repair_bell)


def _provision(services: Services, stopping: threading.Event) -> Callable[[], None]:
    engine, settings, bell = services.engine, services.settings, services.bell
    workos = connect(settings, services.redis, services.counters)
    lag = timedelta(seconds=settings.catch_up_lag_seconds)
    read_events = partial(catch_up_or_resync, engine, workos, lag=lag)
    applied = partial(update_complete_to, engine)

    @_unavailable_logged()
    def run() -> None:
        require_same_environment(engine, workos, settings)
        while provisioning.provision(engine, workos, lag, bell, read_events, applied, stopping.is_set):
            pass

    return answered(run, services.provision_bell)


def _hooks(services: Services, stopping: threading.Event) -> Callable[[], None]:
    called = targets(services.settings)

    def run() -> None:
        if not follow(services.engine, called, services.settings.hook_attempts, stopping.is_set):
            services.hooks_bell.ring()

    return answered(run, services.hooks_bell)


@contextmanager
def _unavailable_logged() -> Iterator[None]:
    """Log errors about WorkOS instead of raising them. The clock rings for the remaining work."""
    try:
        yield
    except (ConfigurationError, WorkOSUnavailableError) as error:
        log.warning("work_postponed", reason=str(error))
