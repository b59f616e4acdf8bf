"""The Python peer: `procrastinate` 3.10.0, jobs in PostgreSQL, behind Starlette and uvicorn (enqueue.py).

Two uvicorn processes with uvloop and httptools. For each delivery they check the signature, insert one job in a
transaction, and answer 200. Two workers run the jobs, each up to ten at once (the default is one, which is slower
here); one job is one upsert or delete. Finished jobs stay, as by default. Both workers log each job, as by default.

It does not: ignore a repeated event by its id, keep a record of changes or of deletes, batch jobs. The upsert is
refused if the row has the same or a newer `updated_at`, as a careful author writes it; without this condition the late
and repeated events would also leave wrong rows. A delete removes the row, so that a late or repeated older version
inserts it again. A job whose worker is killed needs a periodic task that the author writes; no worker is killed here.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import psycopg

from tests.benchmarks.peers.install import python
from tests.benchmarks.peers.system import Server, System
from tests.benchmarks.peers.versions import WORKOS
from tests.benchmarks.servers import COMPILED, START_SECONDS, Bench
from tests.support import SECRET
from tests.support.stack.machine import answers, environment, free_ports
from tests.support.stack.processes import Process, stop_all

PROCRASTINATE = "procrastinate"
MODULE = "tests.benchmarks.peers.enqueue"
PROCESSES = 2
CONCURRENCY = 10
TABLE = "CREATE TABLE organizations (id text PRIMARY KEY, name text, external_id text, updated_at timestamptz)"
WORKERS_READY = "SELECT count(*) FROM procrastinate_workers"


@contextmanager
def procrastinate(bench: Bench) -> Iterator[System]:
    """Run it with a database of its own.

    Raises:
        MissingError: it cannot be installed here.
    """
    program = str(python(bench.folder))
    with bench.empty_database() as url, ExitStack() as stack:
        env = environment(COMPILED) | {"DATABASE_URL": url, "WEBHOOK_SECRET": SECRET}
        command = [program, "-m", "procrastinate", "--app", f"{MODULE}.jobs"]

        def run(name: str, arguments: list[str]) -> Process:
            return Process(name, arguments, env, bench.folder, bench.folder / f"{name}.log")

        run("schema", [*command, "schema", "--apply"]).require_success(START_SECONDS)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(TABLE)

        @contextmanager
        def start() -> Iterator[tuple[int, Process]]:
            port = free_ports(1)[0]
            options = ["--workers", str(PROCESSES), "--port", str(port), "--no-access-log", "--log-level", "warning"]
            process = run("uvicorn", [program, "-m", "uvicorn", *options, f"{MODULE}:web"])
            try:
                process.wait_until(lambda: answers(f"http://127.0.0.1:{port}/healthz"), START_SECONDS)
                yield port, process
            finally:
                stop_all([process])

        workers = [
            run(f"jobs-{number}", [*command, "worker", "--concurrency", str(CONCURRENCY)])
            for number in range(PROCESSES)
        ]
        stack.callback(stop_all, workers)
        system = System(
            PROCRASTINATE,
            url,
            stack.enter_context(Server(start)),
            WORKOS,
            live="SELECT id, name FROM organizations",
            pending="SELECT EXISTS (SELECT FROM procrastinate_jobs WHERE status IN ('todo', 'doing'))",
            others=tuple(worker.pid for worker in workers),
        )
        workers[-1].wait_until(lambda: system.query(WORKERS_READY) == [(PROCESSES,)], START_SECONDS)
        yield system
