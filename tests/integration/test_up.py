"""`workos-sync up`: everything that a small installation needs, under one supervisor."""

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import psutil
import pytest
from sqlalchemy import Engine

from models.database import open_engine
from tests.support.deliveries import deliver
from tests.support.inbox import count, pending
from tests.support.processes import Command, Commands, alive, eventually, listens, working_in
from tests.support.stack.machine import free_ports
from tests.support.stories import encoded, new_users

pytestmark = pytest.mark.long

MOST_MEMORY = 300e6


@pytest.fixture
def engine(commands: Commands, make_database: Callable[[str], str]) -> Engine:
    """An engine on the database of the commands, which use an embedded Valkey."""
    commands.settings |= {"DATABASE_URL": (url := make_database("sqlite"))}
    return open_engine(url)


def start(commands: Commands) -> tuple[Command, int]:
    [port] = free_ports(1)
    command = commands.start("up", PORT=port)
    eventually(lambda: listens(port) or command.process.poll() is not None, 30)
    assert command.process.poll() is None, command.output()
    return command, port


def processes(command: Command) -> list[psutil.Process]:
    """Two that accept deliveries, three that work, the clock, Valkey, and the process that ends Valkey."""
    return psutil.Process(command.process.pid).children()


def accepts(port: int, body: bytes) -> bool:
    with suppress(OSError):  # while the process is being replaced
        return deliver(port, body) == 200
    return False


@pytest.mark.alone  # other processes would share its memory
def test_one_command_receives_and_applies_events(commands: Commands, engine: Engine) -> None:
    commands.executed = True
    command, port = start(commands)
    for body in map(encoded, new_users(3)):
        assert deliver(port, body) == 200
    eventually(lambda: count(engine) == 3 and pending(engine) == 0, 10)
    family = [psutil.Process(command.process.pid), *processes(command)]
    memory = sum(process.memory_full_info().pss for process in family)
    print(f"{memory / 1e6:.0f} MB")
    assert memory < MOST_MEMORY
    command.stop(20)


def test_a_process_that_is_killed_is_replaced(commands: Commands, engine: Engine) -> None:
    command, port = start(commands)
    eventually(lambda: len(processes(command)) == 7, 20)
    for victim in processes(command):
        victim.kill()
    eventually(lambda: all_run(command), 30)  # the clock starts Valkey, as its child
    eventually(lambda: listens(port), 20)
    for body in map(encoded, new_users(3)):
        eventually(partial(accepts, port, body), 20)
    eventually(lambda: count(engine) == 3 and pending(engine) == 0, 30)
    command.stop(20)


def test_a_valkey_of_a_killed_clock_ends_with_up(commands: Commands, engine: Engine) -> None:
    command, _ = start(commands)
    [first] = eventually(lambda: valkeys(commands), 20)
    first.kill()
    [second] = eventually(lambda: [each for each in valkeys(commands) if each != first], 20)
    clock = second.parent()
    assert clock is not None and clock.parent() == psutil.Process(command.process.pid)
    clock.kill()
    eventually(lambda: all_run(command, 6), 20)  # and the process that ends Valkey
    command.stop(20)
    assert valkeys(commands) == []


def valkeys(commands: Commands) -> list[psutil.Process]:
    return working_in(commands.folder / ".workos-sync" / "valkey")


def all_run(command: Command, number: int = 5) -> bool:
    """Return whether at least `number` processes run: by default two for web, two lanes and the clock."""
    return len(list(filter(alive, processes(command)))) >= number


def test_nothing_is_left_after_a_kill_of_the_supervisor(commands: Commands, engine: Engine) -> None:
    command, port = start(commands)
    eventually(lambda: len(processes(command)) == 7, 20)
    family = processes(command)
    os.kill(command.process.pid, signal.SIGKILL)
    command.process.wait()
    eventually(lambda: not any(map(alive, family)) and not listens(port), 5)
    assert valkeys(commands) == []
    engine.dispose()
