"""Every kind of fault that the drill injects."""

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

import psutil
from redis.exceptions import RedisError
from sqlalchemy import ColumnElement, Engine, exists, select

from models.database import read_transaction
from models.tables import Run, RunStatus, Task
from models.types import db_now
from tests.drill.clock.sitecustomize import POLL_SECONDS
from tests.drill.embedded import frozen_embedded_valkey
from tests.drill.installation import COMMANDS, STOP_SECONDS, Installation
from tests.drill.proxy import Proxy
from tests.support.inbox import held_before_commit
from tests.support.processes import eventually, suppress_gone
from tests.support.stack.machine import JSON, call
from tests.support.stack.processes import StackError

SKEWS = (-3600, -600, -120, -30, 30, 120, 600, 3600)
WAIT_SECONDS = 10.0
"""How long a fault waits for a target before it is put off."""
LONG = 14
"""How much longer than usual is a fault that status must report: 42 s in the drill."""
REPLAY_SECONDS = 60.0
LATENCY = 0.02
"""Seconds before each answer of WorkOS, so that a resync takes a while and something happens to it."""
CALLS_OF_A_CATCH_UP = 3
"""About."""
MAX_LATENCY = 15.0
"""Less than what a call may take."""
NONSENSE: dict[str, JSON] = {
    "HTML": {"body": "<!doctype html><title>Sign in</title>", "content_type": "text/html"},
    "an empty object": {"body": "{}"},
    "an empty list": {"body": "[]"},
    "null": {"body": "null"},
    "204": {"status": 204},
    "302": {"status": 302},
    "404 of a proxy": {"status": 404, "body": "<!doctype html><title>Not found</title>", "content_type": "text/html"},
    "cut off": {"body": '{"object":"list","data":[{"id":"org_'},
}


@dataclass(frozen=True)
class Field:
    """The context of a fault: the installation, an engine for queries, random numbers, and the usual length in seconds.

    A fault adds to `problems` what went wrong, where it checks that itself.
    """

    installation: Installation
    engine: Engine
    random: Random
    usual: float
    problems: list[str]

    def some_seconds(self) -> float:
        """The length of this fault: mostly short, sometimes long enough that another process takes over leases."""
        return min(self.random.expovariate(1 / self.usual), 6 * self.usual)

    @property
    def long_seconds(self) -> float:
        """The length of a fault that status must report."""
        return LONG * self.usual

    def sandbox(self, method: str, path: str, body: JSON | None = None) -> None:
        """Change the sandbox."""
        call(method, f"{self.installation.sandbox_url}/sandbox/{path}", body)


Strike = Callable[[Field], None]
Victims = Callable[[Installation], list[psutil.Process]]


class Fault(NamedTuple):
    """`kind` and `target` name it in the table. `strike` raises if there was nothing to strike, or returns after it."""

    kind: str
    target: str
    strike: Strike


VICTIMS: dict[str, Victims] = {
    "web supervisor": lambda installation: installation.main_process("web"),
    "web process": lambda installation: installation.children("web"),
    "worker supervisor": lambda installation: installation.main_process("worker"),
    "lane": lambda installation: installation.children("worker"),
    "clock": lambda installation: installation.main_process("clock"),
    "Valkey": Installation.valkey_processes,
    "PostgreSQL postmaster": Installation.postgres_processes,
    "PostgreSQL backend": Installation.backends,
}

LONG_VICTIMS: dict[str, Victims] = {
    "every lane": VICTIMS["lane"],
    "clock": VICTIMS["clock"],
    "Valkey": VICTIMS["Valkey"],
}


def all_faults() -> list[Fault]:
    """Return every kind of fault that this machine can do."""
    return [
        *(Fault("kill -9", name, _killing(victims)) for name, victims in VICTIMS.items()),
        *(Fault("SIGSTOP, SIGCONT", name, _freezing(victims)) for name, victims in VICTIMS.items()),
        *(Fault("SIGSTOP for long", name, _freezing_all(victims)) for name, victims in LONG_VICTIMS.items()),
        Fault("FLUSHALL", "Valkey", lambda field: field.installation.valkey.flush()),
        Fault("FLUSHALL", "during a long job", _flush_in_a_long_job),
        Fault("fail-over", "Valkey", lambda field: field.installation.fail_over(field.some_seconds())),
        Fault("memory full", "Valkey", _fill),
        *(fault for name in ("PostgreSQL", "Valkey") for fault in _cuts(name)),
        Fault("restart, fast", "PostgreSQL", _stopping(signal.SIGINT)),
        Fault("restart, immediate", "PostgreSQL", _stopping(signal.SIGQUIT)),
        *(Fault("wrong clock", command, _skewing(command)) for command in COMMANDS),
        Fault("deploy", "during a drain", _deploy_in_a_drain),
        Fault("deploy", "during a resync", _deploy_in_a_resync),
        Fault("kill -9", "resync command", _kill_a_resync),
        Fault("nonsense", "WorkOS API", _answer_nonsense),
        Fault("new ROLE_MAP", "everything replayed", _change_the_role_map),
        Fault("slow answers", "hook", _slow_the_hook),
        Fault("SIGSTOP, SIGCONT", "embedded Valkey", _freeze_an_embedded_valkey),
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


def _freezing_all(victims: Victims) -> Strike:
    def strike(field: Field) -> None:
        frozen = eventually(lambda: victims(field.installation), WAIT_SECONDS)
        try:
            for victim in frozen:
                with suppress_gone():
                    victim.suspend()
            time.sleep(field.long_seconds)
        finally:
            for victim in frozen:
                with suppress_gone():
                    victim.resume()

    return strike


def _flush_in_a_long_job(field: Field) -> None:
    """Flush while the lane `repair` is busy with a job that takes about as long as a fault that status must report."""
    latency = min(field.long_seconds / CALLS_OF_A_CATCH_UP, MAX_LATENCY)
    field.sandbox("PUT", "knobs", {"latency": latency})
    try:
        eventually(lambda: _runs(field.engine), WAIT_SECONDS)
        field.installation.valkey.flush()
        time.sleep(field.long_seconds)
    finally:
        field.sandbox("PUT", "knobs", {"latency": LATENCY})


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


def _answer_nonsense(field: Field) -> None:
    """Answer every call of the API as WorkOS never would, in one way after the other, while a resync runs."""
    ways = field.random.sample(sorted(NONSENSE), len(NONSENSE))
    with _resync(field):
        try:
            for way in ways:
                field.sandbox("DELETE", "faults")
                field.sandbox("POST", "faults", {"kind": "answer", "path": "/", **NONSENSE[way]})
                time.sleep(field.long_seconds / len(ways))
        finally:
            field.sandbox("DELETE", "faults")


def _change_the_role_map(field: Field) -> None:
    """Replay everything under another map; then go back to the usual one, which the truth is compared by."""
    try:
        field.installation.configure("worker", ROLE_MAP="billing=admin")
        _replay_everything(field)
    finally:
        field.installation.configure("worker", ROLE_MAP="billing=member")


def _replay_everything(field: Field) -> None:
    """Replay all events, as an operator would. If the command dies or takes too long, a worker goes on with it."""
    arguments = ("--since", "2020-01-01", "--reason", "the drill", "--again")
    process = field.installation.spawn("replay", *arguments, name=f"replay-{time.monotonic_ns()}")
    try:
        if process.popen.wait(REPLAY_SECONDS):
            raise StackError(f"nothing was replayed\n{process.tail()}")
    except subprocess.TimeoutExpired:
        process.kill()
    finally:
        field.installation.processes.pop(process.name, None)


def _slow_the_hook(field: Field) -> None:
    with field.installation.slow_host.slowed():
        time.sleep(field.long_seconds)


def _freeze_an_embedded_valkey(field: Field) -> None:
    field.problems.extend(frozen_embedded_valkey(field.long_seconds, field.random.randrange(1000)))


def _resync_runs(engine: Engine) -> bool:
    return _runs(engine, Run.task == Task.RESYNC)


def _runs(engine: Engine, *conditions: ColumnElement[bool]) -> bool:
    """Whether somebody works on a run that meets the conditions."""
    running = exists().where(Run.status == RunStatus.RUNNING, Run.leased_until > db_now(), *conditions)
    with read_transaction(engine) as tx:
        return bool(tx.execute(select(running)).scalar_one())
