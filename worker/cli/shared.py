"""What several commands need: who calls, and an open database, Redis and WorkOS."""

import getpass
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TypeVar

import click
from sqlalchemy import Engine

from models.tables import Via
from worker import bootstrap
from worker.audit import Actor
from worker.bootstrap import Services, build_services, require_migrated
from worker.errors import UnknownIdError
from worker.logs import configure
from worker.processes.embedded import redis_server
from worker.repair.environment import bind, connect, require_same_environment
from worker.settings import Settings, load_settings
from worker.workos_api.client import WorkOSClient

T = TypeVar("T")


def operator() -> str:
    """Return the login name of the person at the command line, which is recorded with their changes.

    A user without a login name, as in containers, is `uid 12345`.
    """
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # KeyError until Python 3.12
        return f"uid {os.getuid()}"


def actor(reason: str | None) -> Actor:
    """Return the person at the command line with the reason they give."""
    return Actor(operator(), Via.CLI, reason)


def known(found: T | None, otherwise: str) -> T:
    """Return `found`; raise `UnknownIdError` with the message `otherwise` if it is None."""
    if found is None:
        raise UnknownIdError(otherwise)
    return found


@contextmanager
def until_stopped() -> Iterator[threading.Event]:
    """Yield an event that is set by SIGTERM, Ctrl-C and the end of the terminal."""
    stop = threading.Event()
    hangup = [signal.SIGHUP] * (signal.getsignal(signal.SIGHUP) != signal.SIG_IGN)  # ignored under nohup
    for number in (signal.SIGTERM, signal.SIGINT, *hangup):
        signal.signal(number, lambda *_: stop.set())
    yield stop


def logging_settings(*required: str, **given: int | None) -> Settings:
    """Return the settings as `load_settings` does, and send the log to standard error in the format they name."""
    settings = load_settings(*required, **given)
    configure(settings.log_format)
    return settings


def open_database(settings: Settings) -> Engine:
    """Return an engine that is disposed when the command ends."""
    engine = bootstrap.open_database(settings)
    click.get_current_context().call_on_close(engine.dispose)
    return engine


def migrated_engine() -> Engine:
    """Return an engine of the database; raise `ConfigurationError` if it is not at the newest revision."""
    engine = open_database(logging_settings())
    require_migrated(engine)
    return engine


@contextmanager
def open_services(settings: Settings) -> Iterator[Services]:
    """Yield the services of a process, with the embedded Valkey if REDIS_URL is not set."""
    with redis_server(settings) as redis, closing(build_services(settings, redis.url)) as services:
        yield services


@contextmanager
def reaching_workos(settings: Settings, *, bound: bool = True) -> Iterator[tuple[Services, WorkOSClient]]:
    """Yield the services of a process and a WorkOS client, after checking that the database mirrors this environment.

    With `bound`, a new database is bound to this environment.

    Raises:
        ConfigurationError: the database mirrors another environment, or is not migrated.
        InvalidApiKeyError: WorkOS refuses the API key.
        WorkOSError: WorkOS does not answer.
    """
    with open_services(settings) as services:
        require_migrated(services.engine)
        with closing(connect(settings, services.redis, services.counters)) as workos:
            (bind if bound else require_same_environment)(services.engine, workos, settings)
            yield services, workos
