"""Clients with other habits than WorkOS: old versions of HTTP, half-closed connections, pipelines, no reading."""

import contextlib
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack

import psutil
import pytest
from sqlalchemy import Engine, text

from models.tables import Event
from tests.support import apply_all, event_row, rows
from tests.support.connections import connect, delivery, get, read_all, read_answers, reset_when_closed
from tests.support.deliveries import deliver
from tests.support.inbox import count
from tests.support.processes import Commands, eventually
from tests.support.stories import encoded, new_users, organization, store, user
from webhooks.api.changes import MAX_SNAPSHOTS
from webhooks.serve import UNREAD_SECONDS

pytestmark = pytest.mark.long

READER = "reader-token-0123456789"
BEARER = f"Authorization: Bearer {READER}"
WORKSPACES = 2_500
SNAPSHOT = get("/api/v1/snapshot", BEARER, "Connection: close")
ACCEPTED, DUPLICATE = (200, b'{"status":"accepted"}\n'), (200, b'{"status":"duplicate"}\n')


@pytest.fixture
def db_url(request: pytest.FixtureRequest, make_database: Callable[[str], str]) -> str:
    """SQLite unless a test asks for PostgreSQL: how a client sends does not depend on the database."""
    return make_database(getattr(request, "param", "sqlite"))


@pytest.fixture
def port(commands: Commands, db_url: str, redis_url: str) -> int:
    """The port of a `web` with one process."""
    settings = {"DATABASE_URL": db_url, "REDIS_URL": redis_url, "WEB_PROCESSES": 1, "API_TOKENS": f"ann:{READER}"}
    commands.settings |= settings
    return commands.web()[1]


def ended(client: socket.socket) -> bool:
    """Whether the server has closed the connection; a test fails with a time-out if it stays open."""
    return read_all(client) == b""


def test_http_1_0_without_keep_alive_ends_after_the_answer(port: int, engine: Engine) -> None:
    with connect(port) as client:
        client.sendall(delivery(encoded(user("user_1", "event_1", 0)), version="1.0"))
        answer = read_all(client)
    assert answer.startswith((b"HTTP/1.0 200 ", b"HTTP/1.1 200 ")) and answer.endswith(ACCEPTED[1])
    assert b"transfer-encoding" not in answer.lower()
    assert count(engine) == 1


def test_http_1_0_with_keep_alive_is_kept(port: int, engine: Engine) -> None:
    sent = delivery(encoded(user("user_1", "event_1", 0)), "Connection: keep-alive", version="1.0")
    with connect(port) as client:
        for expected in (ACCEPTED, DUPLICATE):
            client.sendall(sent)
            assert read_answers(client, 1) == [expected]
        client.sendall(delivery(encoded(user("user_1", "event_1", 0)), version="1.0"))
        assert read_answers(client, 1) == [DUPLICATE]
        assert ended(client)
    assert event_row(engine, "event_1")["deliveries"] == 3


def test_the_event_of_a_half_closed_client_is_stored_once(port: int, engine: Engine) -> None:
    bodies = [encoded(user("user_1", f"event_{place}", 0)) for place in range(20)]
    answers = []
    for body in bodies:
        with connect(port) as client:
            client.sendall(delivery(body))
            client.shutdown(socket.SHUT_WR)
            answers.append(read_all(client))
    answered = sum(answer.startswith(b"HTTP/1.1 200 ") for answer in answers)
    print(f"{answered} of {len(answers)} half-closed clients had an answer")
    assert all(answer == b"" or answer.startswith(b"HTTP/1.1 200 ") for answer in answers)
    assert deliver(port, encoded(user("user_1", "event_last", 0))) == 200  # all earlier ones have ended
    stored = {row["id"] for row in rows(engine, Event)} - {"event_last"}
    print(f"{len(stored)} of {len(answers)} were stored")
    assert len(stored) >= answered
    for place, body in enumerate(bodies):
        with connect(port) as client:
            client.sendall(delivery(body))
            assert read_answers(client, 1) == [DUPLICATE if f"event_{place}" in stored else ACCEPTED]
    assert count(engine) == len(bodies) + 1
    assert count(engine, Event.deliveries == 2) == len(stored)


def test_the_event_of_a_client_that_leaves_before_the_answer_is_stored_once(port: int, engine: Engine) -> None:
    bodies = [encoded(user("user_1", f"event_{place}", 0)) for place in range(20)]
    for body in bodies:
        with connect(port) as client:
            client.sendall(delivery(body))
    eventually(lambda: count(engine) == len(bodies), 10)
    assert deliver(port, bodies[0]) == 200
    assert event_row(engine, "event_0")["deliveries"] == 2


def test_expect_100_continue_is_answered_before_the_body_is_sent(port: int, engine: Engine) -> None:
    body = encoded(user("user_1", "event_1", 0))
    sent = delivery(body, "Expect: 100-continue")
    with connect(port) as client:
        for expected in (ACCEPTED, DUPLICATE):  # also the second on a connection
            client.sendall(sent.removesuffix(body))
            assert client.recv(1024) == b"HTTP/1.1 100 Continue\r\n\r\n"
            client.sendall(body)
            assert read_answers(client, 1) == [expected]


def test_a_client_that_does_not_wait_for_100_continue_gets_its_answer(port: int, engine: Engine) -> None:
    with connect(port) as client:
        client.sendall(delivery(encoded(user("user_1", "event_1", 0)), "Expect: 100-continue"))
        assert read_answers(client, 1) == [ACCEPTED]
    assert count(engine) == 1


def test_a_delivery_that_will_be_refused_needs_no_body(port: int, engine: Engine) -> None:
    with connect(port) as client:
        head = delivery(b"x", "Expect: 100-continue").replace(b"Content-Length: 1\r", b"Content-Length: 99999999\r")
        client.sendall(head.removesuffix(b"x"))
        assert read_all(client).startswith(b"HTTP/1.1 413 ")


def test_pipelined_deliveries_are_answered_in_order(port: int, engine: Engine) -> None:
    bodies = [encoded(event) for event in new_users(100)]
    with connect(port) as client:
        client.sendall(b"".join(map(delivery, [*bodies, *bodies])))
        assert read_answers(client, 200) == [ACCEPTED] * 100 + [DUPLICATE] * 100
    assert count(engine, Event.deliveries == 2) == 100


@pytest.mark.timeout(240)
def test_a_client_that_never_reads_is_disconnected_and_delays_nobody(
    commands: Commands, make_database: Callable[[str], str], redis_url: str
) -> None:
    ask = delivery(encoded(user("user_1", "event_1", 0)))
    commands.settings |= {"DATABASE_URL": make_database("sqlite"), "REDIS_URL": redis_url, "WEB_PROCESSES": 1}
    web, port = commands.web()
    body = encoded(user("user_2", "event_2", 0))
    assert deliver(port, body) == 200
    [process] = web.family()
    without = len(established(process))
    with ExitStack() as stack:
        clients = [stack.enter_context(socket.socket()) for _ in range(8)]
        for client in clients:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            client.connect(("127.0.0.1", port))
            client.setblocking(False)
        whole = memoryview(ask * 2_000)
        sending = [whole] * len(clients)
        began, blocked, took = time.monotonic(), 0.0, []
        while time.monotonic() < began + UNREAD_SECONDS * 4:
            moved = False
            for place, client in enumerate(clients):
                with contextlib.suppress(OSError):
                    sent = client.send(sending[place])
                    sending[place] = sending[place][sent:] or whole
                    moved = True
            if moved:
                blocked = time.monotonic()
            at = time.monotonic()
            assert deliver(port, body) == 200
            took.append(time.monotonic() - at)
            if len(established(process)) <= without and not moved:
                break
            time.sleep(0.05)  # as long as a client takes
        seconds = time.monotonic() - blocked
        left = len(established(process)) - without
    print(
        f"{left} left {seconds:.1f} s after the last byte was sent, {time.monotonic() - began:.1f} s after the first;"
    )
    print(f"the slowest of {len(took)} deliveries took {max(took):.3f} s")
    assert left <= 0 and seconds < UNREAD_SECONDS + 15
    assert sorted(took)[-1 - len(took) // 100] < 3.0


def established(process: psutil.Process) -> list[object]:
    return [each for each in process.net_connections("tcp") if each.status == psutil.CONN_ESTABLISHED]


# Streams


@pytest.fixture
def snapshot_port(commands: Commands, db_url: str, redis_url: str, engine: Engine) -> int:
    """As `port`, with a mirror of 20 MB."""
    events = [organization(f"org_{place:05}", f"event_org_{place:05}", 0) for place in range(WORKSPACES)]
    for event in events:
        event["data"]["name"] = "x" * 8_000
    store(engine, events)
    apply_all(engine)
    settings = {"DATABASE_URL": db_url, "REDIS_URL": redis_url, "WEB_PROCESSES": 1, "API_TOKENS": f"ann:{READER}"}
    commands.settings |= settings
    return commands.web()[1]


def busy(engine: Engine) -> int:
    """Connections of the database that are in a transaction, except this one."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE '%in transaction%' AND datname = current_database()"
    with engine.connect() as connection:
        return int(connection.execute(text(f"{query} AND pid <> pg_backend_pid()")).scalar_one())


@pytest.mark.parametrize("db_url", ["postgresql"], indirect=True)
def test_a_client_that_leaves_a_snapshot_frees_its_slot_and_its_connection(snapshot_port: int, engine: Engine) -> None:
    for leave in ("close", "reset", "shutdown"):  # together more than there are slots and connections
        with ExitStack() as stack:
            readers = [slow_reader(snapshot_port, stack) for _ in range(MAX_SNAPSHOTS)]
            with connect(snapshot_port) as another:
                another.sendall(SNAPSHOT)
                assert read_all(another).startswith(b"HTTP/1.1 429 "), "all slots are taken"
            assert busy(engine) == MAX_SNAPSHOTS
            for reader in readers:
                if leave == "reset":
                    reset_when_closed(reader)
                if leave == "shutdown":
                    reader.shutdown(socket.SHUT_RDWR)
                else:
                    reader.close()
            began = time.monotonic()
            eventually(lambda: busy(engine) == 0, 10)
            eventually(lambda: is_whole(snapshot_port), 10)
            print(f"free {time.monotonic() - began:.2f} s after {leave}")


@pytest.mark.parametrize("db_url", ["postgresql"], indirect=True)
def test_a_client_that_never_reads_its_snapshot_loses_its_slot_and_its_connection(
    snapshot_port: int, engine: Engine
) -> None:
    with ExitStack() as stack:
        for _ in range(MAX_SNAPSHOTS):
            slow_reader(snapshot_port, stack)
        began = time.monotonic()
        eventually(lambda: busy(engine) == 0, UNREAD_SECONDS + 15)
        print(f"free after {time.monotonic() - began:.1f} s")
        eventually(lambda: is_whole(snapshot_port), 10)


def is_whole(port: int) -> bool:
    """Whether a snapshot is answered now; then it must be complete."""
    with connect(port, seconds=30) as client:
        client.sendall(SNAPSHOT)
        answer = read_all(client)
    assert answer.count(b'"organization_id"') >= WORKSPACES or answer.startswith(b"HTTP/1.1 429 "), answer[-200:]
    return answer.endswith(b"0\r\n\r\n")


def slow_reader(port: int, stack: ExitStack) -> socket.socket:
    """A connection that has read the start of a snapshot, once a slot is free. It is closed with `stack`."""

    def begun() -> socket.socket | None:
        made = stack.enter_context(socket.socket())
        made.settimeout(20)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        made.connect(("127.0.0.1", port))
        made.sendall(SNAPSHOT)
        return made if made.recv(1_024).startswith(b"HTTP/1.1 200 ") else None

    found = eventually(begun, 10)
    assert found is not None
    return found
