"""Latency: from the answer to a delivery until a follower of `changes` sees what it led to, at a steady rate."""

import http.client
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from statistics import quantiles
from typing import Any

from redis import Redis
from rq import Queue
from sqlalchemy import Engine, Select, func, select

from models.database import read_transaction
from models.tables import Change
from tests.benchmarks.deliveries import PATH, signed
from tests.benchmarks.runner import LIMIT, OURS, Mark, Row, Sample
from tests.benchmarks.servers import START_SECONDS, Bench
from tests.benchmarks.workers import listening, workers

PER_SECOND = 100
POLL_SECONDS = 0.001
APPLIED_WITHIN_SECONDS = 60.0
"""After the last delivery."""
P50, P99 = "p50 ms", "p99 ms"
MARKS = [Mark(P50, most=8), Mark(P99, most=30), Mark(P50, LIMIT), Mark(P99, LIMIT)]


def rows(bench: Bench) -> Iterator[Row]:
    """Yield accepted → applied beside an empty RQ job, enqueue → finished, each with the worker that ours is."""
    number = bench.size(1_000, 20)
    for kind in bench.kinds:
        with bench.database(kind) as url, bench.engine(url) as engine, bench.web(url) as (port, _):

            def ours(url: str = url, engine: Engine = engine, port: int = port) -> Sample:
                with workers(bench, url, 2):
                    return percentiles(_accepted_to_applied(engine, port, number))

            contenders = {OURS: ours, LIMIT: lambda: percentiles(_empty_jobs(bench, number))}
            yield Row(f"accepted to applied, {kind}: {PER_SECOND} events/s", contenders, MARKS)


def percentiles(seconds: Sequence[float]) -> Sample:
    """Return the median and the 99th percentile of some durations in seconds."""
    cuts = quantiles(seconds, n=100)
    return {P50: cuts[49] * 1e3, P99: cuts[98] * 1e3}


def _accepted_to_applied(engine: Engine, port: int, number: int) -> list[float]:
    seen: dict[str, float] = {}
    accepted: dict[str, float] = {}
    with read_transaction(engine) as tx:
        last = tx.execute(select(func.max(Change.id))).scalar_one() or 0
    over = threading.Event()
    follower = threading.Thread(target=partial(_follow, engine, last, number, seen, over))
    follower.start()
    began = time.perf_counter()
    with closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
        for place, (signature, body) in enumerate(signed(number)):
            time.sleep(max(0.0, began + place / PER_SECOND - time.perf_counter()))
            connection.request("POST", PATH, body, {"WorkOS-Signature": signature})
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200
            accepted[_id(body)] = time.perf_counter()
    follower.join(APPLIED_WITHIN_SECONDS)
    over.set()
    follower.join()
    return [seen[id] - at for id, at in accepted.items()]


def _id(body: bytes) -> str:
    return body.partition(b'"id": "')[2].partition(b'"')[0].decode()


def _follow(engine: Engine, last: int, number: int, seen: dict[str, float], over: threading.Event) -> None:
    with _queries(engine) as run:
        while len(seen) < number and not over.is_set():
            newer = select(Change.id, Change.cause_id).where(Change.id > last).order_by(Change.id)
            for last, cause_id in run(newer):  # noqa: B007, PLR1704 - the cursor moves with what was seen
                seen[cause_id] = time.perf_counter()
            time.sleep(POLL_SECONDS)


@contextmanager
def _queries(engine: Engine) -> Iterator[Callable[[Select[*tuple[Any, ...]]], Sequence[Any]]]:
    """Yield what runs a query; on PostgreSQL as one statement, which costs the server least."""
    if engine.dialect.name == "postgresql":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            yield lambda query: connection.execute(query).all()
        return

    def run(query: Select[*tuple[Any, ...]]) -> Sequence[Any]:
        with read_transaction(engine) as tx:
            return tx.execute(query).all()

    yield run


def _empty_jobs(bench: Bench, number: int) -> list[float]:
    bench.empty_redis()
    with Redis.from_url(bench.redis_url) as redis:
        queue, began, jobs = Queue("empty", connection=redis), time.perf_counter(), []
        arguments = ["-m", "rq.cli", "worker", "--url", bench.redis_url, "-w", "rq.SimpleWorker", "empty"]
        with bench.running("rq", arguments, bench.environment("sqlite://")) as process:
            process.wait_until(lambda: listening(redis) > 0, START_SECONDS)
            began = time.perf_counter()
            for place in range(number):
                time.sleep(max(0.0, began + place / PER_SECOND - time.perf_counter()))
                jobs.append(queue.enqueue("time.time"))
            process.wait_until(lambda: len(queue.finished_job_registry) == number)
        for job in jobs:
            job.refresh()  # type: ignore[no-untyped-call]  # RQ has no type for it
    return [(job.ended_at - job.enqueued_at).total_seconds() for job in jobs if job.ended_at and job.enqueued_at]
