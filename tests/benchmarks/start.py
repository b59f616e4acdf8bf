"""Start: how soon `workos-sync worker` takes jobs."""

import subprocess
import sys
import time
from collections.abc import Iterator

from redis import Redis

from tests.benchmarks.runner import LIMIT, OURS, Mark, Row, Sample
from tests.benchmarks.servers import POSTGRESQL, Bench
from tests.benchmarks.workers import listening
from tests.support.stack.processes import StackError

FIRST = "first of them ready, s"
ALL = "all ready, s"
IMPORTS = "import flask, rq, sqlalchemy, workos"
LANES = 3
"""Two processes that drain and one that repairs, as by default."""


def rows(bench: Bench) -> Iterator[Row]:
    """Yield it beside the imports that nobody can do without."""
    with bench.database(POSTGRESQL) as url, Redis.from_url(bench.redis_url) as redis:
        env = bench.environment(url)

        def ours() -> Sample:
            bench.empty_redis()
            began, ready = time.perf_counter(), list[float]()
            with bench.running("worker", ["-m", "worker.cli", "worker"], env) as process:
                while len(ready) < LANES:
                    process.require_running()
                    if time.perf_counter() > began + 120:
                        raise StackError(f"the worker was not ready\n{process.tail()}")
                    time.sleep(0.005)
                    ready += [time.perf_counter() - began] * (listening(redis) - len(ready))
            return {FIRST: ready[0], ALL: ready[-1]}

        def limit() -> Sample:
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", IMPORTS], env=env, check=True)
            took = time.perf_counter() - began
            return {FIRST: took, ALL: took}

        ours()  # compiles
        yield Row(f'start, limit: python -c "{IMPORTS}"', {OURS: ours, LIMIT: limit}, [_mark(FIRST), _mark(ALL)])


def _mark(figure: str) -> Mark:
    return Mark(figure, LIMIT, most=1.3)
