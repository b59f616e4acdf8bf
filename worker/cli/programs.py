"""The programs that `web`, `worker`, `clock` and `up` run until they are stopped."""

import importlib
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from datetime import timedelta
from functools import partial
from typing import NamedTuple

import click
import structlog
from redis.exceptions import RedisError
from sqlalchemy import Engine

from models.database import in_transaction
from models.public_domains import refresh
from models.tables import AutoJoinMode
from worker import provisioning
from worker.bootstrap import (
    CLAIM_SECONDS,
    Services,
    build_services,
    claim_redis,
    endpoint_redis,
    lanes_of,
    require_redis_version,
    start_reports,
    stop_reports,
)
from worker.cli import output
from worker.cli.announcement import announcement
from worker.cli.shared import open_database, until_stopped
from worker.database import require_migrated
from worker.error_handling import describe
from worker.errors import WorkOSError
from worker.hooks import follow
from worker.metrics import Counters, Place
from worker.mirror import auto_join_policy, lost_access, role_map
from worker.notify.message import Sender
from worker.notify.notifier import INTERVALS, NOTIFY_TICK, Notifier
from worker.notify.targets import require_usable, targets
from worker.processes import alive, lane, tail
from worker.processes.alive import Beats
from worker.processes.clock import PeriodicTask, heartbeat, ring_if_waiting, run, sweep
from worker.processes.embedded import RedisServer, redis_server
from worker.processes.supervisor import supervise
from worker.queue.doorbell import DRAIN
from worker.repair import sessions
from worker.repair.environment import bind, connect
from worker.repair.missed_losses import note_missed_losses
from worker.repair.schedule import schedule, take_tick, watch
from worker.reports.notices import conditions_to_report
from worker.settings import Settings

log = structlog.get_logger()

CLOCK_HEARTBEAT_SECONDS = 5.0
"""Maximum interval between two heartbeats of the clock, in seconds."""
NOTIFY_STOP_SECONDS = 10.0
"""How long a process that stops waits for a message that is being sent: less than its service manager allows."""
COUNTS_SECONDS = 300.0
"""Interval at which missing members and workspaces without an admin are counted, in seconds."""


Program = Callable[[], None]
"""A function that a supervised process runs until it is stopped."""


class _Part(NamedTuple):
    """The programs that a command runs under the supervisor, each in a process, and the sockets that they share."""

    programs: list[Program]
    sockets: Sequence[socket.socket] = ()


def supervise_parts(
    command: str,
    settings: Settings,
    *makers: Callable[[Settings, str, Engine], _Part],
    running: Callable[[Settings], AbstractContextManager[RedisServer]] = redis_server,
) -> None:
    """Run the programs that each of `makers` returns until stopped, each in a process. `command` is announced."""
    file = alive.file_of(command)
    start_reports(settings)  # once here, so that a configuration error ends the command, not each of its processes
    stop_reports()
    engine = open_database(settings)
    with ExitStack() as at_end:
        at_end.callback(alive.remove, file)
        require_migrated(engine, settings.environment_name)
        stop = at_end.enter_context(until_stopped())
        redis = at_end.enter_context(running(settings))
        with Beats(file).beating():
            _require_own_redis(engine, redis.url)
            parts = [make(settings, redis.url, engine) for make in makers]
        engine.dispose()  # a fork would share its connections
        sockets = [opened for part in parts for opened in part.sockets]
        programs = [
            program if part.sockets else partial(_without, sockets, program)
            for part in parts
            for program in part.programs
        ]
        _announce(command, settings, sockets)
        supervise(programs, stop, _reporter(redis.url), stopping=partial(_close, sockets), beats_file=file)


def _require_own_redis(engine: Engine, url: str) -> None:
    """Raise `ConfigurationError` if the Redis is too old, or another database uses it; not if it is unavailable."""
    require_redis_version(url)
    with endpoint_redis(url) as redis:
        claim_redis(engine, redis)


def _announce(command: str, settings: Settings, sockets: Sequence[socket.socket] = ()) -> None:
    """Print what starts, if a person sees it."""
    if sys.stderr.isatty():
        click.echo(announcement(command, settings, sockets, output.width()), err=True)


def _close(sockets: Sequence[socket.socket]) -> None:
    """Close sockets. Once no process has them open, new connections are refused, and clients can try another host."""
    for opened in sockets:
        opened.close()


def _without(sockets: Sequence[socket.socket], program: Program) -> None:
    """Run a program that does not use these sockets."""
    _close(sockets)
    program()


def web_part(settings: Settings, redis_url: str, _engine: Engine) -> _Part:
    """Listen on BIND and PORT, and return the web processes."""
    serve = importlib.import_module("webhooks.serve")  # by name, because it belongs to a higher layer
    serve.require_usable(settings)
    sockets = serve.listen(settings)
    return _Part(serve.processes(settings, redis_url, sockets), sockets)


def worker_part(settings: Settings, redis_url: str, engine: Engine) -> _Part:
    """Store ROLE_MAP, AUTO_JOIN and REVOKE_SESSIONS in the database, and return the worker processes."""
    require_usable(settings)
    _bind_if_reachable(engine, settings, redis_url)
    role_map.adopt(engine, settings.role_map)
    auto_join_policy.adopt(engine, settings.auto_join, existing=settings.auto_join_existing)
    lost_access.adopt(engine, on=settings.revoke_sessions)
    note_missed_losses(engine)
    in_transaction(engine, refresh)
    lanes = [DRAIN] * (settings.worker_processes - 1) + list(lanes_of(settings))
    return _Part([partial(lane.work, name, settings, redis_url) for name in lanes])


def tail_part(settings: Settings, redis_url: str, _engine: Engine) -> _Part:
    """Return the process that tails the events API; none if the API cannot be called."""
    return _Part([partial(_run_tail, settings, redis_url)] if settings.repairs else [])


def _run_tail(settings: Settings, redis_url: str) -> None:
    """Tail the events API until stopped."""
    with until_stopped() as stop:
        _tail_until(stop, settings, redis_url)


def _tail_until(stop: threading.Event, settings: Settings, redis_url: str) -> None:
    with closing(build_services(settings, redis_url)) as services:
        tail.run(services, stop)


def clock_and_tail_part(settings: Settings, redis_url: str, _engine: Engine) -> _Part:
    """Return the process that runs the periodic tasks and tails the events API."""
    return _Part([partial(_run_clock_and_tail, settings, redis_url)])


def _run_clock_and_tail(settings: Settings, redis_url: str) -> None:
    """Run the periodic tasks, and tail the events API in a thread. One process needs less memory than two.

    Whatever ends one of them ends the process, which the supervisor then starts again.
    """
    with until_stopped() as stop, ThreadPoolExecutor(1, "tail") as pool:

        def run_tail() -> None:
            try:
                _tail_until(stop, settings, redis_url)
            finally:
                stop.set()

        tailing = pool.submit(run_tail) if settings.repairs else None
        try:
            _run_tasks(settings, RedisServer(settings), stop)
        finally:
            stop.set()
        if tailing is not None:
            tailing.result()


def _run_tasks(settings: Settings, redis: RedisServer, stop: threading.Event) -> None:
    """Run the periodic tasks until stopped. The first starts the embedded Valkey if it is needed and not running."""
    with closing(build_services(settings, redis.url)) as services, _notifying(services, stop):
        run(periodic_tasks(services, redis.ensure), stop, services.counters)


@contextmanager
def _notifying(services: Services, stop: threading.Event) -> Iterator[None]:
    """Notify the targets of NOTIFY from a thread until `stop` is set, so that a slow target delays no periodic task."""
    if not services.settings.notify:
        yield
        return
    loop = ([_notify_task(services)], stop, services.counters)
    thread = threading.Thread(target=run, args=loop, name="notify", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(NOTIFY_STOP_SECONDS)  # the next process repeats a message that takes longer


def _notify_task(services: Services) -> PeriodicTask:
    """Return the task that sends notifications. If several processes run it, one of them does the work each time."""
    settings, engine = services.settings, services.engine
    remind = timedelta(seconds=settings.notify_remind_seconds)
    report = partial(services.counters.report, Place.TASK, "notify")
    sender = Sender(settings.environment_name, settings.public_url)
    notifier = Notifier(engine, targets(settings), remind, sender, report)
    seconds = INTERVALS * settings.repair_seconds

    def compare() -> None:
        if in_transaction(engine, take_tick, NOTIFY_TICK, 0.9 * seconds):
            notifier.notify(conditions_to_report(engine, services.report_redis, settings))

    return PeriodicTask("notify", seconds, compare)


def notify_part(settings: Settings, redis_url: str, _engine: Engine) -> _Part:
    """Return the process that sends notifications while no clock does, as when it has stopped; none without NOTIFY."""
    return _Part([partial(_run_notify, settings, redis_url)] if settings.notify else [])


def _run_notify(settings: Settings, redis_url: str) -> None:
    """Send notifications until stopped."""
    with until_stopped() as stop, closing(build_services(settings, redis_url)) as services:
        run([_notify_task(services)], stop, services.counters)


def run_clock(settings: Settings) -> None:
    """Run the periodic tasks until stopped."""
    require_usable(settings)
    file = alive.file_of("clock")
    engine = open_database(settings)
    with ExitStack() as at_end:
        at_end.callback(alive.remove, file)
        require_migrated(engine, settings.environment_name)
        stop = at_end.enter_context(until_stopped())
        at_end.enter_context(Beats(file).beating())
        redis = at_end.enter_context(redis_server(settings))
        _require_own_redis(engine, redis.url)
        _bind_if_reachable(engine, settings, redis.url)
        _announce("clock", settings)
        _run_tasks(settings, redis, stop)


def _reporter(redis_url: str) -> Callable[[BaseException], None]:
    """Return a function that reports that a process could not be started. It leaves no connection or thread behind."""

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


def periodic_tasks(services: Services, ensure_redis: Callable[[], object]) -> list[PeriodicTask]:
    """Return everything the clock does. `ensure_redis` starts the embedded Valkey if it is needed and not running."""
    engine, settings = services.engine, services.settings
    tasks = [
        PeriodicTask("redis", settings.sweep_seconds, ensure_redis),
        PeriodicTask("heartbeat", min(settings.sweep_seconds, CLOCK_HEARTBEAT_SECONDS), partial(heartbeat, engine)),
        PeriodicTask("claim", CLAIM_SECONDS / 3, partial(claim_redis, engine, services.redis)),
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
    if settings.revoke_sessions:
        ring = partial(ring_if_waiting, services.sessions_bell, partial(sessions.waiting, engine))
        tasks.append(PeriodicTask("sessions", settings.repair_seconds, ring))
    return tasks
