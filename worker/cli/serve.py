"""The processes: web, worker and clock, and beside them demo."""

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
from worker import provisioning
from worker.bootstrap import build_services, lanes_of, require_migrated
from worker.cli.shared import open_database, until_stopped
from worker.errors import ConfigurationError, WorkOSUnavailableError
from worker.hooks import follow
from worker.logs import configure
from worker.mirror import auto_join_policy, role_map
from worker.processes import lane
from worker.processes.clock import PeriodicTask, heartbeat, run, sweep
from worker.processes.embedded import redis_server
from worker.processes.supervisor import supervise
from worker.queue.doorbell import DRAIN, Doorbell
from worker.repair.environment import bind, connect
from worker.repair.schedule import schedule, watch
from worker.settings import Settings, load_settings

log = structlog.get_logger()

STOCK_SECONDS = 300.0
"""Between two counts of who is missing and which workspaces have no admin."""


@click.command()
@click.option("--port", type=click.IntRange(0, 65535), help="Instead of the setting PORT.")
def web(port: int | None) -> None:
    """Take webhook deliveries: serve POST /webhooks/workos and the health checks with gunicorn."""
    settings = load_settings("workos_webhook_secrets", port=port)
    require_migrated(open_database(settings))
    if not (settings.listen_fds and settings.redis_url):  # gunicorn takes the socket that systemd holds open
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
            probe.bind(("0.0.0.0", port))  # noqa: S104 - the door faces the network, as a container or proxy needs
        except OSError as error:
            raise ConfigurationError(f"PORT {port} cannot be used: {error.strerror}; choose another") from error


def _gunicorn(settings: Settings) -> list[str]:
    options = {
        "--bind": f"0.0.0.0:{settings.port}",
        "--workers": settings.web_processes,
        "--worker-class": "webhooks.server.buffering.BufferingWorker",
        "--threads": settings.web_threads,
        "--worker-connections": 500,  # each may hold a body: this bounds the memory of a process
        "--timeout": 30,
        "--graceful-timeout": 20,
        "--keep-alive": 75,  # longer than a load balancer's 60 s, so that it never meets a connection just closed
        "--log-level": "warning",
    }
    arguments = [str(part) for option in options.items() for part in option]
    return [sys.executable, "-m", "gunicorn", *arguments, "--no-control-socket", "webhooks.wsgi:application()"]


@click.command()
@click.option("--processes", type=click.IntRange(1), help="Instead of the setting WORKER_PROCESSES.")
def worker(processes: int | None) -> None:
    """Apply events: run worker processes; one that dies is started again."""
    settings = load_settings(worker_processes=processes)
    configure(settings.log_format)
    engine = open_database(settings)
    require_migrated(engine)
    lanes = [DRAIN] * (settings.worker_processes - 1) + list(lanes_of(settings))
    with redis_server(settings) as redis, until_stopped() as stop:
        _bind_if_reachable(engine, settings, redis.url)
        role_map.adopt(engine, settings.role_map)
        auto_join_policy.adopt(engine, settings.auto_join, existing=settings.auto_join_existing)
        in_transaction(engine, refresh)
        engine.dispose()
        supervise([partial(lane.work, name, settings, redis.url) for name in lanes], stop)


def _bind_if_reachable(engine: Engine, settings: Settings, redis_url: str) -> None:
    """Refuse another WorkOS environment before anything is written; without WorkOS the rest goes on meanwhile."""
    if not settings.repairs:
        log.warning("repair_off", why="WORKOS_API_KEY is not set: nothing repairs what webhooks miss")
        return
    try:
        with (
            closing(build_services(settings, redis_url)) as services,
            closing(connect(settings, services.redis, services.counters)) as workos,
        ):
            bind(engine, workos, settings)
    except (WorkOSUnavailableError, RedisError) as error:
        log.warning("environment_not_checked", error=type(error).__name__)


@click.command()
def clock() -> None:
    """Do what is due: ring for events and runs that no one works on, start resync, catch-up and retention."""
    settings = load_settings()
    configure(settings.log_format)
    with (
        redis_server(settings) as redis,
        closing(build_services(settings, redis.url)) as services,
        until_stopped() as stop,
    ):
        require_migrated(services.engine)
        _bind_if_reachable(services.engine, settings, redis.url)
        duties = [
            PeriodicTask("redis", settings.sweep_seconds, redis.ensure),
            PeriodicTask("beat", settings.sweep_seconds, lambda: heartbeat(services.engine)),
            PeriodicTask("sweep", settings.sweep_seconds, lambda: sweep(services.engine, services.bell)),
            PeriodicTask("schedule", settings.repair_seconds, lambda: schedule(services.engine, settings)),
            PeriodicTask("watch", settings.repair_seconds, lambda: watch(services.engine, services.repair_bell)),
            PeriodicTask("stock", STOCK_SECONDS, lambda: auto_join_policy.refresh_counts(services.engine)),
        ]
        if settings.auto_join == "provision":
            duties.append(
                _ringing("joins", services.provision_bell, lambda: provisioning.waiting(services.engine), settings)
            )
        if settings.http_hooks:
            told = settings.http_hooks
            duties.append(
                _ringing("hooks", services.hooks_bell, lambda: follow.behind(services.engine, told), settings)
            )
        run(duties, stop)


def _ringing(name: str, bell: Doorbell, waiting: Callable[[], bool], settings: Settings) -> PeriodicTask:
    """Return the duty to ring for what waits and was not rung for."""

    def look() -> None:
        if not bell.waiting() and waiting():
            bell.ring()

    return PeriodicTask(name, settings.repair_seconds, look)


@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def demo(arguments: tuple[str, ...]) -> None:
    """Show it working end to end against a sandbox WorkOS (from a checkout)."""
    if importlib.util.find_spec("tests") is None or importlib.util.find_spec("tests.demo") is None:
        raise ConfigurationError("the demo is part of the checkout, not of the installed package: run make demo there")
    command: Callable[..., None] = importlib.import_module("tests.demo").command
    command(list(arguments), prog_name="workos-sync demo")
