"""First import: a full resync into an empty mirror, beside COPY of the rows that it writes."""

import time
from collections.abc import Iterator, Mapping
from contextlib import closing

import psycopg
from redis import Redis

from models.tables import Change
from tests.benchmarks.runner import LIMIT, OURS, Mark, Row, Sample
from tests.benchmarks.sandboxed import workos
from tests.benchmarks.servers import POSTGRESQL, Bench
from tests.support.resync import CLIENT_ID, UNLIMITED, resync
from worker.kinds import KINDS
from worker.sandbox.service import API_KEY
from worker.workos_api.bucket import Buckets
from worker.workos_api.client import open_client

RATE = "objects/s"
TABLES = [*(kind.table.__tablename__ for kind in KINDS.values()), Change.__tablename__]


def rows(bench: Bench) -> Iterator[Row]:
    """Yield it on PostgreSQL. WorkOS answers without latency and limits, and the resync includes its calls."""
    organizations, members = bench.size((10_000, 10), (10, 2))
    objects = organizations * (1 + 2 * members)  # the organization, and a user and a membership for each member
    with workos(bench, organizations, members, {"rate_limits": False}) as address:
        copied: dict[str, bytes] = {}

        def ours() -> Sample:
            with bench.database(POSTGRESQL) as url:
                took = _resynced(bench, url, address)
                copied.update(_read(url))
            return {RATE: objects / took}

        def limit() -> Sample:
            with bench.database(POSTGRESQL) as url:
                return {RATE: objects / _written(url, copied)}

        what = f"first import, postgresql: {organizations:,} organizations of {members}, limit: COPY"
        yield Row(what, {OURS: ours, LIMIT: limit}, [Mark(RATE, LIMIT, least=0.3)], most_rounds=2)


def _resynced(bench: Bench, url: str, address: str) -> float:
    """Resync in this process, with a rate limit far above what it reaches; return the seconds."""
    bench.empty_redis()
    with (
        bench.engine(url) as engine,
        Redis.from_url(bench.redis_url) as redis,
        closing(open_client(API_KEY, CLIENT_ID, address, Buckets(redis, UNLIMITED), timeout_seconds=30)) as client,
    ):
        began = time.perf_counter()
        resync(engine, client)
        return time.perf_counter() - began


def _read(url: str) -> Mapping[str, bytes]:
    """Return the rows of each table as COPY writes them."""
    with psycopg.connect(url) as connection, connection.cursor() as cursor:
        found = {}
        for table in TABLES:
            with cursor.copy(f"COPY {table} TO STDOUT") as copy:
                found[table] = b"".join(copy)
    return found


def _written(url: str, copied: Mapping[str, bytes]) -> float:
    """Copy the rows into an empty mirror in one transaction; return the seconds."""
    with psycopg.connect(url) as connection:
        began = time.perf_counter()
        with connection.cursor() as cursor:
            for table, data in copied.items():
                with cursor.copy(f"COPY {table} FROM STDIN") as copy:
                    copy.write(data)
        connection.commit()
        return time.perf_counter() - began
