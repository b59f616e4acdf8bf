"""A database or Redis that cannot be used is named with host, port, database, user and reason, never the password."""

import json
import re
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from redis import Redis
from redis.connection import AbstractConnection
from redis.exceptions import RedisError
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from models.database import open_engine, what_is_wrong, write_transaction
from tests.support.cli import run
from tests.support.pooler import Pooler, session_pooler
from worker.redis_client import open_redis, server_version
from worker.redis_client import what_is_wrong as what_is_wrong_with_redis

pytestmark = pytest.mark.long

PASSWORD = "pa55%2Fword"
PLAIN = "pa55/word"


@pytest.fixture
def closed_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def server(make_database: Callable[[str], str]) -> Iterator[Pooler]:
    """A PostgreSQL server that is reached by TCP."""
    with session_pooler(open_engine(make_database("postgresql")).url) as running:
        yield running


def line_of(command: str) -> str:
    error = run(*command.split(), exit_code=2).stderr
    assert error.count("\n") == 1, error
    assert PLAIN not in error and PASSWORD not in error
    return error


@pytest.mark.parametrize("command", ["migrate", "status", "worker"])
def test_a_wrong_port_is_named(command: str, closed_port: int, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", f"postgresql://app:{PASSWORD}@127.0.0.1:{closed_port}/mirror")
    monkeypatch.setenv("REDIS_URL", redis_url)
    error = line_of(command)
    assert f"DATABASE_URL: PostgreSQL at 127.0.0.1:{closed_port}, database mirror, user app: " in error
    assert "Connection refused" in error and "start it, or correct DATABASE_URL" in error


def test_a_wrong_host_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", f"postgresql://app:{PASSWORD}@db.invalid/mirror")
    error = line_of("migrate")
    assert "PostgreSQL at db.invalid:5432, database mirror, user app: " in error
    assert re.search("resolve|translate|not known|resolution", error)


@pytest.mark.parametrize(("part", "reason"), [("database", "does not exist"), ("user", "does not exist")])
def test_the_servers_reason_is_shown(part: str, reason: str, server: Pooler, monkeypatch: pytest.MonkeyPatch) -> None:
    url = open_engine(server.url).url
    wrong = url.set(database="no_such") if part == "database" else url.set(username="no_such", password=PLAIN)
    monkeypatch.setenv("DATABASE_URL", wrong.render_as_string(hide_password=False))
    error = line_of("migrate")
    assert reason in error and f'{part if part == "database" else "role"} "no_such"' in error
    assert f"127.0.0.1:{url.port}" in error


def test_a_sqlite_file_that_cannot_be_opened_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "sqlite:////proc/nowhere/all.db")
    assert "SQLite file /proc/nowhere/all.db: unable to open database file" in line_of("migrate")


def test_a_file_that_is_not_a_database_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notes.txt").write_text("not a database " * 100)
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path}/notes.txt")
    assert "file is not a database" in line_of("migrate")


def test_doctor_shows_both_places_and_reasons(closed_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", f"postgresql://app:{PASSWORD}@127.0.0.1:{closed_port}/mirror")
    monkeypatch.setenv("REDIS_URL", f"redis://sync:{PASSWORD}@127.0.0.1:{closed_port}/3")
    output = run("doctor", "--json", exit_code=1).stdout
    assert PLAIN not in output and PASSWORD not in output
    checks = {check["name"]: check for check in json.loads(output)}
    assert f"127.0.0.1:{closed_port}, database mirror, user app: " in checks["database"]["saw"]
    assert f"127.0.0.1:{closed_port}, database 3, user sync: " in checks["redis"]["saw"]
    assert all("Connection refused" in checks[name]["saw"] for name in ("database", "redis"))


def test_the_password_in_a_reason_is_masked(closed_port: int) -> None:
    engine = open_engine(f"postgresql://app:refused@127.0.0.1:{closed_port}/mirror")
    with pytest.raises(DBAPIError) as raised, engine.connect():
        pass
    assert "refused" not in what_is_wrong(raised.value)[0] and "***" in what_is_wrong(raised.value)[0]


def test_values_of_rows_are_never_shown(db_url: str) -> None:
    engine = open_engine(db_url)
    insert_twice = "INSERT INTO users (id, email) VALUES ('user_ann', 'ann@acme.example'), ('user_ann', NULL)"
    for statement in (insert_twice, "SELECT CAST('ann@acme.example' AS bigint) + json('ann@acme.example')"):
        with pytest.raises(DBAPIError) as raised:
            execute(engine, statement)
        assert "ann" not in what_is_wrong(raised.value)[0]
    engine.dispose()


def test_an_exception_of_the_driver_becomes_a_database_error(make_database: Callable[[str], str]) -> None:
    engine = open_engine(make_database("sqlite"))
    with pytest.raises(DBAPIError) as raised:
        execute(engine, "SELECT :value", value=2**70)
    assert what_is_wrong(raised.value)[0].endswith(": OverflowError")
    engine.dispose()


def execute(engine: Engine, statement: str, **values: object) -> None:
    with write_transaction(engine) as tx:
        tx.execute(text(statement), values)


# Redis


def test_an_unreachable_redis_is_named(closed_port: int, make_database: Callable[[str], str]) -> None:
    with open_redis(f"redis://sync:{PASSWORD}@127.0.0.1:{closed_port}/3") as redis, pytest.raises(RedisError) as raised:
        redis.ping()
    saw, remedy = what_is_wrong_with_redis(raised.value)
    assert saw.startswith(f"does not answer at 127.0.0.1:{closed_port}, database 3, user sync: ") and "refused" in saw
    assert PLAIN not in saw and "REDIS_URL" in remedy


def test_a_wrong_password_is_shown_with_redis_reason(redis_url: str, redis: Redis) -> None:
    redis.acl_setuser("sync", enabled=True, passwords=["+right"], keys=["*"], commands=["+@all"])
    with open_redis(f"{redis_url}?username=sync&password={PASSWORD}") as wrong, pytest.raises(RedisError) as raised:
        wrong.ping()
    saw, _ = what_is_wrong_with_redis(raised.value)
    assert "user sync" in saw and "invalid username-password pair" in saw and PLAIN not in saw
    redis.acl_deluser("sync")


def test_a_server_that_repeats_the_password_is_cut_short() -> None:
    answer = f"-ERR unknown command 'HELLO', with args beginning with: '3' 'AUTH' '{PLAIN}'\r\n".encode()

    def serve() -> None:
        client, _ = old.accept()
        with client:
            client.recv(4096)
            client.sendall(answer)
            client.recv(4096)

    with socket.create_server(("127.0.0.1", 0)) as old, ThreadPoolExecutor() as do:
        do.submit(serve)
        url = f"redis://sync:{PASSWORD}@127.0.0.1:{old.getsockname()[1]}/0"
        with open_redis(url, socket_timeout=2) as redis, pytest.raises(RedisError) as raised:
            redis.ping()
    assert PLAIN not in str(raised.value) and PLAIN not in what_is_wrong_with_redis(raised.value)[0]


def test_an_unknown_parameter_of_the_url_is_one_line(
    monkeypatch: pytest.MonkeyPatch, make_database: Callable[[str], str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", make_database("sqlite"))
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0?foo=1")
    monkeypatch.setenv("WORKOS_API_KEY", "sk_test_1")
    monkeypatch.setenv("WORKOS_CLIENT_ID", "client_1")
    error = line_of("resync")
    assert "REDIS_URL has options that cannot be used: foo" in error


@pytest.mark.parametrize(
    ("method", "connected"),
    [
        ("connect_check_health", False),
        ("send_packed_command", False),
        ("can_read", True),
        ("send_packed_command", True),
        ("read_response", True),
    ],
)
@pytest.mark.parametrize("error", [OSError(113, "no route"), ValueError("odd"), RuntimeError("odd")])
def test_every_failure_of_a_connection_is_a_redis_error(
    error: Exception, method: str, connected: bool, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    with open_redis(redis_url) as redis:
        if connected:
            redis.ping()
        monkeypatch.setattr(AbstractConnection, method, fail)
        with pytest.raises(RedisError):
            redis.ping()


def test_a_redis_user_without_config_is_a_warning(
    redis_url: str, redis: Redis, monkeypatch: pytest.MonkeyPatch, make_database: Callable[[str], str]
) -> None:
    commands = ["+@all", "-config", "-info"]
    redis.acl_setuser("managed", enabled=True, nopass=True, keys=["*"], channels=["*"], commands=commands)
    monkeypatch.setenv("DATABASE_URL", make_database("sqlite"))
    monkeypatch.setenv("REDIS_URL", f"{redis_url}?username=managed&password=x")
    checks = {check["name"]: check for check in json.loads(run("doctor", "--json", exit_code=1).stdout)}
    assert checks["redis"]["level"] == checks["redis settings"]["level"] == "warning"
    assert "noeviction" in checks["redis settings"]["remedy"] and "config" in checks["redis settings"]["saw"]
    redis.acl_deluser("managed")


@pytest.mark.parametrize("command", ["web", "worker", "clock", "doctor"])
def test_an_old_redis_is_refused(
    command: str, redis_url: str, make_database: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Redis, "info", lambda *_: {"redis_version": "6.0.16"})
    monkeypatch.setenv("DATABASE_URL", make_database("sqlite"))
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("WORKOS_WEBHOOK_SECRETS", "whsec_of_some_length")
    monkeypatch.setenv("COLUMNS", "250")
    result = run(command, exit_code=1 if command == "doctor" else 2)
    assert "Redis 6.0.16 is too old" in result.output and "6.2 or newer" in result.output


@pytest.mark.parametrize(
    "info",
    [{"redis_version": "6.2.0"}, {"redis_version": "10.0"}, {"redis_version": "7.2.4", "valkey_version": "9"}, {}],
)
def test_a_current_redis_is_accepted(info: dict[str, str], redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Redis, "info", lambda *_: info)
    assert server_version(redis).split()[0] in ("Redis", "Valkey")
