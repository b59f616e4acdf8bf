"""`workos-sync web`, `worker`, `clock` and `demo`."""

import importlib.util
import os
import socket
import subprocess
import sys
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
from worker.bootstrap import Services, build_services, endpoint_redis, lanes_of, require_migrated, require_redis_version
from worker.cli.shared import logging_settings, open_database, until_stopped
from worker.error_handling import describe
from worker.errors import ConfigurationError, WorkOSError
from worker.hooks import follow
from worker.metrics import Counters, Place
from worker.mirror import auto_join_policy, role_map
from worker.processes import lane
from worker.processes.clock import PeriodicTask, heartbeat, ring_if_waiting, run, sweep
from worker.processes.embedded import redis_server
from worker.processes.supervisor import supervise
from worker.queue.doorbell import DRAIN
from worker.repair.environment import bind, connect
from worker.repair.schedule import schedule, watch
from worker.settings import Settings, load_settings

log = structlog.get_logger()

CLOCK_HEARTBEAT_SECONDS = 5.0
"""Maximum interval between two heartbeats of the clock, in seconds."""
COUNTS_SECONDS = 300.0
"""Interval at which missing members and workspaces without an admin are counted, in seconds."""


@click.command()
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on. Overrides PORT.")
def web(port: int | None) -> None:
    """Receive webhooks; serve pages, API, metrics and health checks."""
    settings = load_settings("workos_webhook_secrets", port=port)
    require_migrated(open_database(settings))
    if settings.redis_url:
        require_redis_version(settings.redis_url)
    if not (settings.listen_fds and settings.redis_url):  # otherwise gunicorn uses the socket opened by systemd
        _require_free(settings.port)
    if settings.redis_url:
        os.execv(sys.executable, _gunicorn(settings))  # noqa: S606 - our own command, as this process
    with redis_server(settings), until_stopped() as stop:
        process = subprocess.Popen(_gunicorn(settings))  # noqa: S603 - our own command
        while process.poll() is None and not stop.wait(0.2):
            pass
        process.terminate()
        code = process.wait()
        sys.exit(0 if stop.is_set() else code if code > 0 else 1)


def _require_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))  # noqa: S104 - reachable from the network, as containers and proxies need
        except OSError as error:
            raise ConfigurationError(f"PORT {port} cannot be used: {error.strerror}; choose another port") from error


def _gunicorn(settings: Settings) -> list[str]:
    options = {
        "--bind": f"0.0.0.0:{settings.port}",
        "--workers": settings.web_processes,
        "--worker-class": "webhooks.server.buffering.BufferingWorker",
        "--threads": settings.web_threads,
        "--worker-connections": 500,  # each may hold a body, so this bounds the memory of a process
        "--timeout": 30,
        "--graceful-timeout": 20,
        "--keep-alive": 75,  # longer than a load balancer's 60 s, so that it never reuses a connection being closed
        "--log-level": "warning",
    }
    arguments = [str(part) for option in options.items() for part in option]
    return [sys.executable, "-m", "gunicorn", *arguments, "--no-control-socket", "webhooks.wsgi:application()"]


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
    except (WorkOSError, RedisError) as error:
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
        PeriodicTask("heartbeat", min(settings.sweep_seconds, CLOCK_HEARTBEAT_SECONDS), partial(heartbeat, engine)),
        PeriodicTask("sweep", settings.sweep_seconds, partial(sweep, engine, services.bell)),
        PeriodicTask("schedule", settings.repair_seconds, partial(schedule, engine, settings)),
        PeriodicTask("watch", settings.repair_seconds, partial(watch, engine, services.repair_bell)),
        PeriodicTask("counts", COUNTS_SECONDS, partial(auto_join_policy.refresh_counts, engine)),
    ]
    if settings.auto_join is AutoJoinMode.PROVISION:
        ring = partial(ring_if_waiting, services.provision_bell, partial(provisioning.waiting, engine))
        tasks.append(PeriodicTask("joins", settings.repair_seconds, ring))
    if settings.http_hooks:
        ring = partial(ring_if_waiting, services.hooks_bell, partial(follow.behind, engine, settings.http_hooks))
        tasks.append(PeriodicTask("hooks", settings.repair_seconds, ring))
    return tasks


@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def demo(arguments: tuple[str, ...]) -> None:
    """Run a demo on this machine against a simulated WorkOS. Requires a clone of the repository."""
    if importlib.util.find_spec("tests") is None or importlib.util.find_spec("tests.demo") is None:
        raise ConfigurationError("the demo is not part of the installed package; run make demo in a checkout")
    command: Callable[..., None] = importlib.import_module("tests.demo").command
    command(list(arguments), prog_name="workos-sync demo")
