"""Shared by commands: the operator's name, and an open database, Redis and WorkOS."""

from __future__ import annotations  # so that an annotation imports nothing

import _thread
import getpass
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, TypeVar

import click

from models.enums import Via
from worker.errors import UnknownIdError
from worker.lazy import lazy_imports

with lazy_imports():
    from worker import audit, bootstrap, database, logs
    from worker import settings as configuration
    from worker.processes import embedded
    from worker.repair import environment
    from worker.reports import lookup
    from worker.workos_api import client

if TYPE_CHECKING:
    from sqlalchemy import Engine

T = TypeVar("T")


def operator() -> str:
    """Return the login name of the person at the command line, which is recorded with their changes.

    A user without a login name, as in containers, is `uid 12345`.
    """
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # KeyError until Python 3.12
        return f"uid {os.getuid()}"


def actor(reason: str | None) -> audit.Actor:
    """Return the person at the command line with the reason they give."""
    return audit.Actor(operator(), Via.CLI, reason)


def organization_id(engine: Engine, name: str | None, *, unmirrored: bool = False) -> str | None:
    """Return the id of the workspace that an option names, as `lookup.organization_id`; None if it is not given."""
    return None if name is None else lookup.organization_id(engine, name, unmirrored=unmirrored)


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
        # In a thread: the one that a signal interrupts may hold the event's lock, and would wait for itself. Starting
        # a `threading.Thread` takes locks too.
        signal.signal(number, lambda *_: _thread.start_new_thread(stop.set, ()))
    yield stop


def logging_settings(*required: str, brief: bool = True, **given: int | None) -> configuration.Settings:
    """Return the settings as `load_settings` does, and send the log to standard error in the format they name.

    With `brief`, as commands that print an answer need it, a terminal shows only warnings and errors of the log.
    """
    settings = configuration.load_settings(*required, **given)
    logs.configure(settings.log_format, brief=brief)
    return settings


def open_database(settings: configuration.Settings) -> Engine:
    """Return an engine that is disposed when the command ends."""
    engine = database.open_database(settings)
    click.get_current_context().call_on_close(engine.dispose)
    return engine


def migrated_engine() -> Engine:
    """Return an engine of the database; raise `ConfigurationError` if it is not at the newest revision."""
    settings = logging_settings()
    engine = open_database(settings)
    database.require_migrated(engine, settings.environment_name)
    return engine


@contextmanager
def open_services(settings: configuration.Settings) -> Iterator[bootstrap.Services]:
    """Yield the services of a process, with the embedded Valkey if REDIS_URL is not set."""
    with embedded.redis_server(settings) as redis, closing(bootstrap.build_services(settings, redis.url)) as services:
        yield services


@contextmanager
def reaching_workos(
    settings: configuration.Settings, *, bound: bool = True
) -> Iterator[tuple[bootstrap.Services, client.WorkOSClient]]:
    """Yield the services of a process and a WorkOS client, after checking that the database mirrors this environment.

    With `bound`, a new database is bound to this environment.

    Raises:
        ConfigurationError: the database mirrors another environment, or is not migrated.
        InvalidApiKeyError: WorkOS refuses the API key.
        WorkOSError: WorkOS does not answer.
    """
    with open_services(settings) as services:
        database.require_migrated(services.engine, settings.environment_name)
        with closing(environment.connect(settings, services.redis, services.counters)) as workos:
            (environment.bind if bound else environment.require_same_environment)(services.engine, workos, settings)
            yield services, workos
