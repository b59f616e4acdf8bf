"""A database that hangs or refuses connections: deliveries get 503 in time, and the process stays as it is."""

import http.client
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Engine
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError

from models.database import database_url, is_transient, open_engine
from tests.drill.proxy import Proxy
from tests.support import sign
from tests.support.connections import PATH
from tests.support.deliveries import deliver
from tests.support.inbox import count
from tests.support.processes import Command, Commands, eventually
from tests.support.stories import encoded, user
from webhooks.serve import STOP_SECONDS

pytestmark = [pytest.mark.long, pytest.mark.timeout(240)]

DELIVERIES = 100
AT_ONCE = 20
BODY_BYTES = 500_000
ANSWER_SECONDS = 12.0
HEALTH_SECONDS = 2.0
"""Beside other tests. A loop that waited for the database would answer after seven seconds."""
MAX_GROWTH = 32_000_000
"""Bytes. 80 more bodies of `BODY_BYTES` are sent: a process that kept them would grow by 40 MB. One that keeps none
grows by about 25 MB: 20 bodies are in progress at a time, and its allocator does not return free memory."""


@pytest.fixture
def proxy(make_database: Callable[[str], str], commands: Commands, redis_url: str) -> Iterator[Proxy]:
    """A proxy before the PostgreSQL server of the commands."""
    url = database_url(make_database("postgresql"))
    made = Proxy(Path(str(url.query["host"])) / ".s.PGSQL.5432")
    through = url.set(host="127.0.0.1", port=made.port, query={"sslmode": "disable"})
    commands.settings |= {
        "DATABASE_URL": through.render_as_string(hide_password=False).replace("+psycopg", ""),
        "REDIS_URL": redis_url,
        "WEB_PROCESSES": 1,
    }
    yield made
    made.close()


def test_a_server_that_does_not_answer_a_new_connection_is_unavailable() -> None:
    """Otherwise the run, event or hook that needs the connection would fail instead of waiting for the server."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        engine = open_engine(f"postgresql://nobody@127.0.0.1:{silent.getsockname()[1]}/none")
        with pytest.raises(OperationalError) as raised, engine.connect():
            pass
    assert type(raised.value.orig).__name__ == "ConnectionTimeout" and is_transient(raised.value)


def large(place: int) -> bytes:
    """A delivery of `BODY_BYTES`."""
    body = encoded(user(f"user_{place}", f"event_{place}", 0))
    return body + b" " * (BODY_BYTES - len(body))


def answer_to(port: int, body: bytes) -> tuple[int, str | None, float]:
    """Status, Retry-After and seconds."""
    began = time.monotonic()
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request("POST", PATH, body, {"WorkOS-Signature": sign(body)})
        answer = connection.getresponse()
        answer.read()
        return answer.status, answer.headers["Retry-After"], time.monotonic() - began


def healthy_in(port: int) -> float:
    began = time.monotonic()
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request("GET", "/healthz")
        assert connection.getresponse().status == 200
        return time.monotonic() - began


def held(web: Command) -> tuple[int, int]:
    """Threads and bytes of the web process."""
    [process] = web.family()
    return process.num_threads(), process.memory_info().rss


@pytest.mark.parametrize("fail", [Proxy.swallowing, Proxy.refusing], ids=["hanging", "refusing"])
def test_deliveries_get_503_in_time_and_are_accepted_when_the_database_is_back(
    proxy: Proxy, commands: Commands, fail: Callable[[Proxy], AbstractContextManager[None]]
) -> None:
    web, port = commands.web()
    assert deliver(port, large(0)) == 200
    [process] = web.family()
    with ThreadPoolExecutor(AT_ONCE) as senders, fail(proxy):
        first = [*senders.map(lambda place: answer_to(port, large(place)), range(1, AT_ONCE + 1))]
        threads, memory = held(web)
        rest = [senders.submit(answer_to, port, large(place)) for place in range(AT_ONCE + 1, DELIVERIES + 1)]
        health = []
        while not all(each.done() for each in rest):
            health.append(healthy_in(port))
            time.sleep(0.05)  # as a load balancer does
        answers = first + [each.result() for each in rest]
        threads_now, memory_now = held(web)
    statuses = {(status, after) for status, after, _ in answers}
    slowest = max(seconds for _, _, seconds in answers)
    print(f"answers {statuses}, slowest {slowest:.1f} s; /healthz {max(health):.3f} s of {len(health)};", end=" ")
    print(f"threads {threads} -> {threads_now}, RSS {memory / 1e6:.0f} -> {memory_now / 1e6:.0f} MB")
    assert {status for status, _ in statuses} == {503} and all(after for _, after in statuses)
    assert slowest < ANSWER_SECONDS and max(health) < HEALTH_SECONDS
    assert threads_now <= threads and memory_now - memory < MAX_GROWTH
    eventually(lambda: deliver(port, large(0)) == 200, 15)
    assert [deliver(port, large(place)) for place in range(1, 6)] == [200] * 5
    assert web.family() == [process], "no restart"
    web.stop()


def test_a_stop_while_the_database_hangs_takes_no_longer_than_otherwise(proxy: Proxy, commands: Commands) -> None:
    web, port = commands.web()
    assert deliver(port, large(0)) == 200
    with ThreadPoolExecutor(4) as senders, proxy.swallowing():
        deliveries = [senders.submit(answer_to, port, large(place)) for place in (1, 2)]
        pages = [senders.submit(get, port, path) for path in ("/readyz", "/metrics")]
        # The process has read them when it has answered somebody who came later.
        time.sleep(0.5)
        assert healthy_in(port) < HEALTH_SECONDS
        began = time.monotonic()
        web.process.terminate()
        code = web.process.wait(40)
        seconds = time.monotonic() - began
    print(f"ended after {seconds:.1f} s with {code};", [each.result()[0] for each in deliveries])
    assert code == 0
    assert [each.result()[0] for each in deliveries] == [503, 503]
    print("pages", [each.result() for each in pages], "(0: the connection ended)")
    assert seconds < STOP_SECONDS + 5, "sooner than the supervisor would kill it"


def get(port: int, path: str) -> int:
    try:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
            connection.request("GET", path)
            return connection.getresponse().status
    except OSError:
        return 0


# SQLite


@contextmanager
def locked(url: str) -> Iterator[None]:
    """Hold the write lock as another program does."""
    file = make_url(url).database
    assert file is not None
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


@pytest.mark.parametrize(("seconds", "status"), [(3.0, 200), (12.0, 503)])
def test_a_locked_sqlite_file_does_not_block_the_loop(
    commands: Commands, make_database: Callable[[str], str], redis_url: str, seconds: float, status: int
) -> None:
    commands.settings |= {"DATABASE_URL": (url := make_database("sqlite")), "REDIS_URL": redis_url, "WEB_PROCESSES": 1}
    _, port = commands.web()
    first, *rest = [encoded(user(f"user_{place}", f"event_{place}", 0)) for place in range(6)]
    assert deliver(port, first) == 200
    with ThreadPoolExecutor(len(rest)) as senders:
        with locked(url):
            began = time.monotonic()
            sent = [senders.submit(answer_to, port, body) for body in rest]
            health = []
            while time.monotonic() < began + seconds:
                health.append(healthy_in(port))
                time.sleep(0.05)  # as a load balancer does
            assert status == 503 or not any(each.done() for each in sent), "they wait for the lock"
        answers = [each.result() for each in sent]
    print("answers", [(code, round(took, 1)) for code, _, took in answers], f"/healthz {max(health):.3f} s")
    assert max(health) < HEALTH_SECONDS
    assert {code for code, _, _ in answers} == {status}
    assert max(took for _, _, took in answers) < ANSWER_SECONDS
    eventually(lambda: deliver(port, first) == 200, 10)
    engine: Engine = open_engine(url)
    assert count(engine) == 1 + (len(rest) if status == 200 else 0)
    engine.dispose()
