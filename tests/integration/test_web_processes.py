"""Web processes that are killed or stopped while deliveries arrive: what was sent is answered, or sent again."""

import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import psutil
import pytest
from sqlalchemy import Engine

from models.database import open_engine
from models.tables import Tick
from tests.support import rows
from tests.support.connections import connect, delivery, get, read_all, read_answers
from tests.support.deliveries import deliver
from tests.support.inbox import count
from tests.support.processes import Command, Commands, alive, eventually, listens
from tests.support.stack.machine import free_ports
from tests.support.stories import encoded, new_users, user
from worker.repair.schedule import WEB_TICK

pytestmark = pytest.mark.long

CLIENTS = 6
MAX_RETRIES = 5


@pytest.fixture
def engine(make_database: Callable[[str], str], commands: Commands, redis_url: str) -> Iterator[Engine]:
    """An engine on the PostgreSQL database of the commands."""
    url = make_database("postgresql")
    commands.settings |= {"DATABASE_URL": url, "REDIS_URL": redis_url}
    opened = open_engine(url)
    yield opened
    opened.dispose()


@dataclass
class Client:
    """Delivers events one after another until it is stopped."""

    port: int
    name: str
    kept: bool
    """Whether it keeps its connection."""
    accepted: list[str] = field(default_factory=list)
    retries: list[int] = field(default_factory=list)
    broken: list[float] = field(default_factory=list)
    """When a connection ended without an answer after a whole delivery was sent."""
    refused: list[float] = field(default_factory=list)
    """When no connection could be made."""
    others: Counter[int] = field(default_factory=Counter)
    """Every other answer."""

    def run(self, stop: threading.Event) -> None:
        with ExitStack() as stack:
            connection: socket.socket | None = None
            while not stop.is_set():
                id = f"event_{self.name}_{len(self.retries):05}"
                body = encoded(user(f"user_{self.name}", id, 0))
                tries = 0
                while not stop.is_set():
                    connection, answered = self._deliver(stack, connection, body)
                    if answered:
                        self.accepted.append(id)
                        break
                    tries += 1
                self.retries.append(tries)

    def _deliver(
        self, stack: ExitStack, connection: socket.socket | None, body: bytes
    ) -> tuple[socket.socket | None, bool]:
        """Send an event; return the connection if it can be used again, and whether the event was accepted."""
        began = time.monotonic()
        try:
            connection = connection or stack.enter_context(connect(self.port))
        except OSError:
            self.refused.append(began)
            time.sleep(0.05)  # as a client does that was refused
            return None, False
        try:
            connection.sendall(delivery(body))
            head = b""
            while b"}\n" not in head:
                more = connection.recv(4096)
                if not more:
                    raise ConnectionResetError
                head += more
        except OSError:
            self.broken.append(began)
            connection.close()
            return None, False
        status = int(head.split(b" ", 2)[1])
        if status != 200:
            self.others[status] += 1
        if not self.kept or b"connection: close" in head.lower():
            connection.close()
            connection = None
        return connection, status == 200


@contextmanager
def clients(port: int, *, kept: bool) -> Iterator[list[Client]]:
    """Deliver meanwhile, with `CLIENTS` clients."""
    stop = threading.Event()
    made = [Client(port, f"{kept}_{place}", kept) for place in range(CLIENTS)]
    threads = [threading.Thread(target=each.run, args=(stop,)) for each in made]
    for thread in threads:
        thread.start()
    try:
        yield made
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def accepted(made: list[Client]) -> int:
    return sum(len(each.accepted) for each in made)


def assert_stored(engine: Engine, made: list[Client]) -> None:
    """Each event that was answered with 200 is stored."""
    found = [id for each in made for id in each.accepted]
    assert len(found) == len(set(found))
    stored = count(engine)
    assert len(found) <= stored <= len(found) + len(made), "at most the last one of each client had no answer"


def summary(made: list[Client]) -> str:
    retries = Counter(number for each in made for number in each.retries)
    broken, refused = (sum(len(getattr(each, name)) for each in made) for name in ("broken", "refused"))
    return f"{accepted(made)} accepted, by retries {dict(retries)}, {broken} broken, {refused} refused"


def replaced(web: Command, number: int, dead: psutil.Process) -> list[psutil.Process]:
    """The web processes, once there are `number` without `dead`."""

    def family() -> list[psutil.Process]:
        found = [process for process in web.family() if process != dead]
        return found if len(found) == number else []

    return eventually(family, 30)


@pytest.mark.timeout(240)
def test_deliveries_are_answered_while_web_processes_are_killed(engine: Engine, commands: Commands) -> None:
    web, port = commands.web(WEB_PROCESSES=2)
    processes = eventually(lambda: found if len(found := web.family()) == 2 else [], 20)
    with clients(port, kept=False) as made:
        eventually(lambda: accepted(made) > 50, 30)
        for turn in range(3):
            processes[turn % 2].kill()
            processes = replaced(web, 2, processes[turn % 2])
            so_far = accepted(made)
            eventually(lambda so_far=so_far: accepted(made) > so_far + 50, 30)  # type: ignore[misc]
    print(summary(made))
    assert max(number for each in made for number in each.retries) <= MAX_RETRIES
    assert not any(each.refused or each.others for each in made), "the supervisor keeps the sockets open"
    assert_stored(engine, made)
    web.stop()


def test_web_records_that_it_runs(engine: Engine, commands: Commands) -> None:
    commands.web(WEB_PROCESSES=2)
    eventually(lambda: WEB_TICK in {row["name"] for row in rows(engine, Tick)}, 20)


def test_connections_that_wait_in_the_socket_of_a_dead_process_are_answered_by_the_next(
    engine: Engine, commands: Commands
) -> None:
    web, port = commands.web(WEB_PROCESSES=1)
    events = new_users(51)
    assert deliver(port, encoded(events.pop())) == 200
    [process] = web.family()
    web.process.send_signal(signal.SIGSTOP)  # or it would start the next one too early
    process.kill()
    eventually(lambda: not alive(process), 10)
    with ExitStack() as stack:
        waiting = [stack.enter_context(connect(port)) for _ in events]
        for client, event in zip(waiting, events, strict=True):
            client.sendall(delivery(encoded(event)))
        web.process.send_signal(signal.SIGCONT)
        answers = [read_answers(client, 1)[0] for client in waiting]
    assert answers == [(200, b'{"status":"accepted"}\n')] * len(events)
    assert count(engine) == len(events) + 1
    web.stop()


def test_after_the_supervisor_is_killed_no_process_and_no_port_is_left(engine: Engine, commands: Commands) -> None:
    web, port = commands.web(WEB_PROCESSES=2)
    processes = eventually(lambda: found if len(found := web.family()) == 2 else [], 20)
    with ExitStack() as stack:
        kept = [stack.enter_context(connect(port)) for _ in range(8)]
        for client in kept:
            client.sendall(get("/healthz"))
        assert {status for client in kept for status, _ in read_answers(client, 1)} == {200}
        began = time.monotonic()
        web.kill()
        eventually(lambda: not any(map(alive, processes)), 5)
        print(f"all ended after {time.monotonic() - began:.1f} s")
    with socket.create_server(("0.0.0.0", port)):  # noqa: S104 - the address of `web`
        assert time.monotonic() - began < 5


@pytest.mark.parametrize("kept", [False, True], ids=["new connections", "kept connections"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stop_breaks_no_delivery_that_was_sent(
    engine: Engine, commands: Commands, number: signal.Signals, *, kept: bool
) -> None:
    web, port = commands.web(WEB_PROCESSES=2)
    eventually(lambda: len(web.family()) == 2, 20)
    with clients(port, kept=kept) as made:
        eventually(lambda: accepted(made) > 100, 30)
        began = time.monotonic()
        os.killpg(web.process.pid, number)
        assert web.process.wait(30) == 0, web.output()[-2000:]
        ended = time.monotonic()
    print(f"ended after {ended - began:.1f} s:", summary(made))
    refused = min(at for each in made for at in each.refused)
    broken = [at for each in made for at in each.broken]
    print("broken after", [round(at - began, 3) for at in broken], f"refused first after {refused - began:.3f} s")
    assert not broken
    assert not any(each.others for each in made)
    assert_stored(engine, made)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_web_process_that_is_stopped_alone_breaks_no_delivery_and_is_replaced(
    engine: Engine, commands: Commands, number: signal.Signals
) -> None:
    web, port = commands.web(WEB_PROCESSES=2)
    processes = eventually(lambda: found if len(found := web.family()) == 2 else [], 20)
    with clients(port, kept=False) as made:
        eventually(lambda: accepted(made) > 100, 30)
        processes[0].send_signal(number)
        replaced(web, 2, processes[0])
        so_far = accepted(made)
        eventually(lambda: accepted(made) > so_far + 50, 30)
    print(summary(made))
    assert not any(each.broken or each.refused or each.others for each in made)
    assert_stored(engine, made)
    web.stop()


def test_web_processes_ignore_sighup(engine: Engine, commands: Commands) -> None:
    web, port = commands.web(WEB_PROCESSES=2)
    processes = eventually(lambda: found if len(found := web.family()) == 2 else [], 20)
    with clients(port, kept=False) as made:
        eventually(lambda: accepted(made) > 100, 30)
        for process in processes:
            process.send_signal(signal.SIGHUP)
        so_far = accepted(made)
        eventually(lambda: accepted(made) > so_far + 200, 30)
    print(summary(made))
    assert not any(each.broken or each.refused or each.others for each in made)
    assert web.family() == processes
    assert_stored(engine, made)
    web.stop()


def test_a_delivery_that_is_being_sent_at_the_stop_is_answered(engine: Engine, commands: Commands) -> None:
    web, port = commands.web(WEB_PROCESSES=1)
    (first, second) = map(encoded, new_users(2))
    assert deliver(port, first) == 200
    sent = delivery(second)
    with connect(port) as client:
        client.sendall(sent[:-20])
        # The server has read the first part when it has answered somebody who came later.
        assert deliver(port, first) == 200
        web.process.terminate()
        eventually(lambda: not answers_anybody(port), 10)
        client.sendall(sent[-20:])
        answer = read_all(client)
    assert answer.startswith(b"HTTP/1.1 200 ") and b"connection: close" in answer
    assert web.process.wait(10) == 0
    assert count(engine) == 2


def answers_anybody(port: int) -> bool:
    """Whether a new connection is answered within half a second."""
    try:
        with connect(port, seconds=0.5) as client:
            client.sendall(get("/healthz"))
            return bool(client.recv(4096))
    except OSError:
        return False


def test_beside_other_processes_only_the_web_processes_keep_the_sockets(engine: Engine, commands: Commands) -> None:
    [port] = free_ports(1)
    both = commands.start("up", PORT=port, WEB_PROCESSES=2, WORKER_PROCESSES=1)
    eventually(lambda: len(both.family()) >= 5, 30)  # the clock and two lanes of the worker
    eventually(lambda: listens(port) and sum(bool(sockets_of(each, port)) for each in both.family()) == 2, 20)
    assert max(len(sockets_of(each, port)) for each in both.family()) <= 2, "one, and a duplicate for the server"
    both.stop(20)
    with pytest.raises(ConnectionRefusedError):
        connect(port).close()


def sockets_of(process: psutil.Process, port: int) -> list[int]:
    """The descriptors with which the process listens on the port."""
    try:
        connections = process.net_connections("tcp")
    except psutil.NoSuchProcess:
        return []
    return [each.fd for each in connections if each.status == psutil.CONN_LISTEN and each.laddr.port == port]
