"""`workos-sync web`, `worker`, `clock` and `demo`."""

import importlib.util
from collections.abc import Callable
from contextlib import closing
from functools import partial

import click
import structlog
from redis.exceptions import RedisError
from sqlalchemy import Engine

from models.database import in_transaction
from models.public_domains import refresh
from models.tables import AutoJoinMode
from worker import provisioning
from worker.bootstrap import (
    Services,
    build_services,
    endpoint_redis,
    lanes_of,
    require_migrated,
    require_redis_version,
)
from worker.cli.shared import logging_settings, open_database, until_stopped
from worker.errors import ConfigurationError, WorkOSUnavailableError
from worker.hooks import follow
from worker.metrics import Counters, Place, describe
from worker.mirror import auto_join_policy, role_map
from worker.processes import lane
from worker.processes.clock import PeriodicTask, heartbeat, run, sweep
from worker.processes.embedded import redis_server
from worker.processes.supervisor import supervise
from worker.queue.doorbell import DRAIN, Doorbell
from worker.repair.environment import bind, connect
from worker.repair.schedule import schedule, watch
from worker.settings import Settings

log = structlog.get_logger()

HEARTBEAT_SECONDS = 5.0
"""Maximum interval between two heartbeats of the clock, in seconds."""
COUNTS_SECONDS = 300.0
"""Interval at which missing members and workspaces without an admin are counted, in seconds."""


@click.command()
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on. Overrides PORT.")
def web(port: int | None) -> None:
    """Receive webhooks; serve pages, API, metrics and health checks."""
    settings = logging_settings("workos_webhook_secrets", port=port)
    engine = open_database(settings)
    require_migrated(engine)
    engine.dispose()
    with redis_server(settings) as redis, until_stopped() as stop:
        require_redis_version(redis.url)
        serve = importlib.import_module("webhooks.serve")  # found by name: it is above this module
        sockets = serve.listen(settings)
        web_processes = serve.processes(settings, redis.url, sockets)
        supervise(web_processes, stop, _reporter(redis.url), stopping=partial(serve.stop_listening, sockets))


@click.command()
@click.option(
    "--processes", type=click.IntRange(1), help="Number of processes that apply events. Overrides WORKER_PROCESSES."
)
def worker(processes: int | None) -> None:
    """Apply events, call hooks, and work on long-running jobs.

    Jobs are resyncs, catch-ups, replays, retention and adding people by domain. A process that dies is restarted.
    """
    settings = logging_settings(worker_processes=processes)
    engine = open_database(settings)
    require_migrated(engine)
    lanes = [DRAIN] * (settings.worker_processes - 1) + list(lanes_of(settings))
    with redis_server(settings) as redis, until_stopped() as stop:
        require_redis_version(redis.url)
        _bind_if_reachable(engine, settings, redis.url)
        role_map.adopt(engine, settings.role_map)
        auto_join_policy.adopt(engine, settings.auto_join, existing=settings.auto_join_existing)
        in_transaction(engine, refresh)
        engine.dispose()
        supervise([partial(lane.work, name, settings, redis.url) for name in lanes], stop, _reporter(redis.url))


def _reporter(redis_url: str) -> Callable[[BaseException], None]:
    """Return what reports an error of starting a process. The supervisor must keep no connection and no thread."""

    def report(error: BaseException) -> None:
        with endpoint_redis(redis_url) as redis:
            counters = Counters(redis, in_background=False)
            counters.report(Place.SUPERVISOR, "start", error)
            counters.hand_over()

    return report


def _bind_if_reachable(engine: Engine, settings: Settings, redis_url: str) -> None:
    """Bind the database to its WorkOS environment, unless WorkOS is unavailable.

    Raises:
        ConfigurationError: the settings name another environment than the one this database mirrors.
    """
    if not settings.repairs:
        log.warning("repair_disabled", why="WORKOS_API_KEY is not set: lost webhooks are not recovered")
        return
    try:
        with (
            closing(build_services(settings, redis_url)) as services,
            closing(connect(settings, services.redis, services.counters)) as workos,
        ):
            bind(engine, workos, settings)
    except (WorkOSUnavailableError, RedisError) as error:
        log.warning("environment_not_checked", error=describe(error))


@click.command()
def clock() -> None:
    """Run the scheduler of resyncs, catch-ups and retention.

    Also wakes workers for events whose wake-up was lost.
    """
    settings = logging_settings()
    with (
        redis_server(settings) as redis,
        closing(build_services(settings, redis.url)) as services,
        until_stopped() as stop,
    ):
        require_migrated(services.engine)
        require_redis_version(redis.url)
        _bind_if_reachable(services.engine, settings, redis.url)
        run(periodic_tasks(services, redis.ensure), stop, services.counters)


def periodic_tasks(services: Services, ensure_redis: Callable[[], object]) -> list[PeriodicTask]:
    """Return everything the clock does. `ensure_redis` starts the embedded Valkey if it is needed and not running."""
    engine, settings = services.engine, services.settings
    tasks = [
        PeriodicTask("redis", settings.sweep_seconds, ensure_redis),
        PeriodicTask("heartbeat", min(settings.sweep_seconds, HEARTBEAT_SECONDS), partial(heartbeat, engine)),
        PeriodicTask("sweep", settings.sweep_seconds, partial(sweep, engine, services.bell)),
        PeriodicTask("schedule", settings.repair_seconds, partial(schedule, engine, settings)),
        PeriodicTask("watch", settings.repair_seconds, partial(watch, engine, services.repair_bell)),
        PeriodicTask("counts", COUNTS_SECONDS, partial(auto_join_policy.refresh_counts, engine)),
    ]
    if settings.auto_join is AutoJoinMode.PROVISION:
        ring = partial(_ring_if_waiting, services.provision_bell, partial(provisioning.waiting, engine))
        tasks.append(PeriodicTask("joins", settings.repair_seconds, ring))
    if settings.http_hooks:
        ring = partial(_ring_if_waiting, services.hooks_bell, partial(follow.behind, engine, settings.http_hooks))
        tasks.append(PeriodicTask("hooks", settings.repair_seconds, ring))
    return tasks


def _ring_if_waiting(bell: Doorbell, waiting: Callable[[], bool]) -> None:
    """Ring for waiting work that no ring announced."""
    if not bell.waiting() and waiting():
        bell.ring()


@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def demo(arguments: tuple[str, ...]) -> None:
    """Run a demo on this machine against a simulated WorkOS. Requires a clone of the repository."""
    if importlib.util.find_spec("tests") is None or importlib.util.find_spec("tests.demo") is None:
        raise ConfigurationError("the demo is not part of the installed package; run make demo in a checkout")
    command: Callable[..., None] = importlib.import_module("tests.demo").command
    command(list(arguments), prog_name="workos-sync demo")
