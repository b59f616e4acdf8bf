"""Every kind of fault that the drill injects."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

import psutil
from redis.exceptions import RedisError
from sqlalchemy import Engine, exists, select

from models.database import read_transaction
from models.tables import Run, RunStatus, Task
from models.types import db_now
from tests.drill.clock.sitecustomize import POLL_SECONDS
from tests.drill.installation import COMMANDS, STOP_SECONDS, Installation
from tests.drill.proxy import Proxy
from tests.support.inbox import held_before_commit
from tests.support.processes import eventually, suppress_gone

SKEWS = (-3600, -600, -120, -30, 30, 120, 600, 3600)
WAIT_SECONDS = 10.0
"""How long a fault waits for a target before it is put off."""


@dataclass(frozen=True)
class Field:
    """What a fault needs: the installation, an engine for queries, random numbers, and the usual length in seconds."""

    installation: Installation
    engine: Engine
    random: Random
    usual: float

    def some_seconds(self) -> float:
        """The length of this fault: mostly short, sometimes long enough that another process takes over leases."""
        return min(self.random.expovariate(1 / self.usual), 6 * self.usual)


Strike = Callable[[Field], None]
Victims = Callable[[Installation], list[psutil.Process]]


class Fault(NamedTuple):
    """`kind` and `target` name it in the table. `strike` raises if there was nothing to strike, or returns after it."""

    kind: str
    target: str
    strike: Strike


VICTIMS: dict[str, Victims] = {
    "gunicorn master": lambda installation: installation.main_process("web"),
    "gunicorn worker": lambda installation: installation.children("web"),
    "worker supervisor": lambda installation: installation.main_process("worker"),
    "lane": lambda installation: installation.children("worker"),
    "clock": lambda installation: installation.main_process("clock"),
    "Valkey": Installation.valkey_processes,
    "PostgreSQL postmaster": Installation.postgres_processes,
    "PostgreSQL backend": Installation.backends,
}


def all_faults() -> list[Fault]:
    """Return every kind of fault that this machine can do."""
    return [
        *(Fault("kill -9", name, _killing(victims)) for name, victims in VICTIMS.items()),
        *(Fault("SIGSTOP, SIGCONT", name, _freezing(victims)) for name, victims in VICTIMS.items()),
        Fault("FLUSHALL", "Valkey", lambda field: field.installation.valkey.flush()),
        Fault("memory full", "Valkey", _fill),
        *(fault for name in ("PostgreSQL", "Valkey") for fault in _cuts(name)),
        Fault("restart, fast", "PostgreSQL", _stopping(signal.SIGINT)),
        Fault("restart, immediate", "PostgreSQL", _stopping(signal.SIGQUIT)),
        *(Fault("wrong clock", command, _skewing(command)) for command in COMMANDS),
        Fault("deploy", "during a drain", _deploy_in_a_drain),
        Fault("deploy", "during a resync", _deploy_in_a_resync),
        Fault("kill -9", "resync command", _kill_a_resync),
    ]


def _one(field: Field, victims: Victims) -> psutil.Process:
    found = eventually(lambda: victims(field.installation), WAIT_SECONDS)
    return field.random.choice(sorted(found, key=lambda process: process.pid))


def _killing(victims: Victims) -> Strike:
    return lambda field: _one(field, victims).kill()


def _freezing(victims: Victims) -> Strike:
    def strike(field: Field) -> None:
        victim = _one(field, victims)
        victim.suspend()
        time.sleep(field.some_seconds())
        with suppress_gone():
            victim.resume()

    return strike


def _fill(field: Field) -> None:
    with field.installation.valkey.client() as redis:
        redis.config_set("maxmemory", 1)
        time.sleep(field.some_seconds())
        with suppress(RedisError):  # it was restarted meanwhile, so its memory is as before
            redis.config_set("maxmemory", 0)


def _cuts(name: str) -> list[Fault]:
    def proxy(field: Field) -> Proxy:
        return field.installation.proxies[name]

    return [
        Fault("connections reset", name, lambda field: proxy(field).reset()),
        Fault("connections refused", name, lambda field: proxy(field).refuse(field.some_seconds())),
        Fault("connections swallowed", name, lambda field: proxy(field).swallow(field.some_seconds())),
    ]


def _stopping(number: signal.Signals) -> Strike:
    """PostgreSQL ends in its own way, and is started again."""

    def strike(field: Field) -> None:
        server = _one(field, Installation.postgres_processes)
        server.send_signal(number)
        try:
            server.wait(STOP_SECONDS)
        except psutil.TimeoutExpired:
            server.kill()  # PostgreSQL 18 may wait for ever if it is asked in the middle of its recovery

    return strike


def _skewing(command: str) -> Strike:
    def strike(field: Field) -> None:
        field.installation.set_clock(command, field.random.choice(SKEWS))
        time.sleep(POLL_SECONDS + field.some_seconds())
        field.installation.set_clock(command, 0)

    return strike


def _deploy_in_a_drain(field: Field) -> None:
    with held_before_commit(field.engine, WAIT_SECONDS):
        for command in COMMANDS:
            field.installation.processes[command].send(signal.SIGTERM)
    field.installation.deploy()


def _deploy_in_a_resync(field: Field) -> None:
    with _resync(field) as command:
        command.terminate()
        field.installation.deploy()  # a worker goes on with it


def _kill_a_resync(field: Field) -> None:
    with _resync(field) as command:
        command.kill()


@contextmanager
def _resync(field: Field) -> Iterator[psutil.Process]:
    """A `workos-sync resync` that has begun."""
    process = field.installation.spawn("resync", name=f"resync-{time.monotonic_ns()}")
    try:
        process.wait_until(lambda: _resync_runs(field.engine))
        yield psutil.Process(process.pid)
    finally:
        process.kill()
        field.installation.processes.pop(process.name, None)


def _resync_runs(engine: Engine) -> bool:
    running = exists().where(Run.task == Task.RESYNC, Run.status == RunStatus.RUNNING, Run.leased_until > db_now())
    with read_transaction(engine) as tx:
        return bool(tx.execute(select(running)).scalar_one())
