"""Fixtures of the use cases. `local…` and `one_engine` use SQLite only, where the kind of database does not matter."""

import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import structlog
from click.testing import CliRunner, Result
from flask.testing import FlaskClient
from redis import Redis
from sqlalchemy import Engine
from structlog.testing import capture_logs

from models.database import open_engine
from tests.support.auto_join import Stage, provisioning_stage
from tests.support.resync import Clock, client_of
from tests.support.sessions import SessionStage, session_stage
from webhooks.app import create_app
from worker.bootstrap import MAX_CONNECTIONS, Services
from worker.cli import main
from worker.queue.doorbell import DRAIN, REPAIR, Doorbell
from worker.sandbox import Sandbox
from worker.settings import Settings, load_settings
from worker.workos_api import client as workos_clients
from worker.workos_api.client import WorkOSClient


@pytest.fixture
def local(make_database: Callable[[str], str], build_test_services: Callable[..., Services]) -> Callable[..., Services]:
    """As `build_test_services`, on SQLite."""
    return partial(build_test_services, database_url=make_database("sqlite"))


@pytest.fixture
def local_services(local: Callable[..., Services]) -> Services:
    """As `services`, on SQLite."""
    return local()


@pytest.fixture
def local_endpoint(local_services: Services) -> FlaskClient:
    """As `endpoint`, on SQLite."""
    return create_app(local_services).test_client()


@pytest.fixture
def local_engine(local_services: Services) -> Engine:
    """As `engine`, on SQLite."""
    return local_services.engine


@pytest.fixture
def logs() -> Iterator[list[Any]]:
    """The log entries of the test, with their bound context."""
    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as captured:
        yield captured


@pytest.fixture
def restored_logging(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restore the logging configuration after the test."""
    config, root, configure = structlog.get_config(), logging.getLogger(), structlog.configure
    handlers, level = root.handlers, root.level
    monkeypatch.setattr(
        structlog, "configure", lambda **given: configure(**given | {"cache_logger_on_first_use": False})
    )
    yield
    configure(**config)
    root.handlers, root.level = handlers, level


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the first wait before a call to WorkOS is retried."""
    monkeypatch.setattr(workos_clients, "FIRST_WAIT_SECONDS", 0.01)


@pytest.fixture
def clock() -> Clock:
    """The sandbox's time, which advances only when the test advances it."""
    return Clock()


@pytest.fixture
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """A running sandbox WorkOS. Its time is `clock` if the test uses that fixture, else the present."""
    clock = request.getfixturevalue("clock") if "clock" in request.fixturenames else None
    with Sandbox(seed=7, clock=clock) as running:
        yield running


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    """A client of an empty Valkey."""
    with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def bell(redis: Redis) -> Doorbell:
    """The doorbell of the drains."""
    return Doorbell(redis, DRAIN)


@pytest.fixture
def repair_bell(redis: Redis) -> Doorbell:
    """The doorbell of the repairs."""
    return Doorbell(redis, REPAIR)


@pytest.fixture
def workos(sandbox: Sandbox, redis: Redis) -> Iterator[WorkOSClient]:
    """The sandbox as the worker sees it."""
    made = client_of(sandbox, redis)
    yield made
    made.close()


@pytest.fixture
def one_engine(make_database: Callable[[str], str]) -> Iterator[Engine]:
    """An engine with the connections of a worker on an SQLite file."""
    engine = open_engine(make_database("sqlite"), pool_size=MAX_CONNECTIONS)
    yield engine
    engine.dispose()


@pytest.fixture
def both_engines(db_url: str) -> Iterator[Engine]:
    """As `engine`, with the connections of a worker."""
    engine = open_engine(db_url, pool_size=MAX_CONNECTIONS)
    yield engine
    engine.dispose()


@pytest.fixture
def stage(one_engine: Engine, redis: Redis) -> Iterator[Stage]:
    """An SQLite mirror that creates memberships, with a sandbox WorkOS of its own."""
    with provisioning_stage(one_engine, redis) as made:
        yield made


@pytest.fixture
def both_stages(both_engines: Engine, redis: Redis) -> Iterator[Stage]:
    """As `stage`, on both databases."""
    with provisioning_stage(both_engines, redis) as made:
        yield made


@pytest.fixture
def session_stages(both_engines: Engine, redis: Redis) -> Iterator[SessionStage]:
    """A mirror with `REVOKE_SESSIONS=on` on both databases, with a sandbox WorkOS of its own."""
    with session_stage(both_engines, redis) as made:
        yield made


@pytest.fixture
def one_session_stage(one_engine: Engine, redis: Redis) -> Iterator[SessionStage]:
    """As `session_stages`, on SQLite."""
    with session_stage(one_engine, redis) as made:
        yield made


@pytest.fixture
def configured_engine() -> Iterator[Engine]:
    """An engine on the database that the environment names."""
    engine = open_engine(load_settings().database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def set_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, redis_url: str) -> Callable[..., None]:
    """A function that sets the environment of commands, in an empty folder and without the machine's settings."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)

    def put(**given: str) -> None:
        for name, value in ({"REDIS_URL": redis_url, "COLUMNS": "250"} | given).items():
            monkeypatch.setenv(name, value)

    return put


@pytest.fixture
def run_forget(set_environment: Callable[..., None], db_url: str) -> Callable[..., Result]:
    """A function that runs `workos-sync forget` on the test's database."""
    set_environment(DATABASE_URL=db_url)
    return lambda *arguments: CliRunner().invoke(main, ["forget", "--yes", "--reason", "ticket 7", *arguments])
