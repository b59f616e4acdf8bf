"""This project: `workos-sync web` with two processes, and `workos-sync worker`, both as they start by default."""

from collections.abc import Iterator
from contextlib import contextmanager

from redis import Redis

from tests.benchmarks.peers.system import Server, System
from tests.benchmarks.peers.versions import WORKOS
from tests.benchmarks.runner import OURS
from tests.benchmarks.servers import POSTGRESQL, START_SECONDS, Bench
from tests.benchmarks.start import LANES
from tests.benchmarks.workers import listening


@contextmanager
def ours(bench: Bench) -> Iterator[System]:
    """Run it with a database of its own. Valkey counts as one of its processes."""
    bench.empty_redis()
    with (
        bench.database(POSTGRESQL) as url,
        Redis.from_url(bench.redis_url) as redis,
        bench.running("worker", ["-m", "worker.cli", "worker"], bench.environment(url)) as worker,
        Server(lambda: bench.web(url)) as server,
    ):
        worker.wait_until(lambda: listening(redis) >= LANES, START_SECONDS)
        yield System(
            OURS,
            url,
            server,
            WORKOS,
            live="SELECT id, name FROM organizations WHERE deleted_by IS NULL",
            pending="SELECT EXISTS (SELECT FROM events WHERE status = 'pending')",
            others=(worker.pid, redis.info("server")["process_id"]),
        )
