"""The Node peer: `@supabase/stripe-sync-engine` 0.48.5 with stripe 23.1.0 and pg 8.23.1 behind `node:http`.

Two processes by `node:cluster`, each with the engine's default of ten connections to PostgreSQL. For each delivery it
checks the signature, upserts one row of `stripe.products` (or deletes it), and answers 200, so that acknowledged means
applied. There is no HTTP framework and no log line for a delivery.

It does not: keep an inbox, ignore a repeated event by its id, keep a record of changes or of deletes. An upsert is
refused if the row has the same or a newer time; times are whole seconds. The versions that are sent are a whole second
apart, so that this costs it nothing here. A delete removes the row, so that a late or repeated older version inserts
it again. Its options that read each object from Stripe are off, as by default: they need Stripe, and run at the rate
that Stripe permits.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.benchmarks.peers.install import node_modules
from tests.benchmarks.peers.system import Server, System
from tests.benchmarks.peers.versions import STRIPE
from tests.benchmarks.servers import COMPILED, START_SECONDS, Bench
from tests.support import SECRET
from tests.support.stack.machine import answers, environment, free_ports
from tests.support.stack.processes import Process, stop_all

NODE = "stripe-sync-engine"
SERVER = Path(__file__).with_name("server.cjs")
PROCESSES = 2


@contextmanager
def node(bench: Bench) -> Iterator[System]:
    """Run it with a database of its own.

    Raises:
        MissingError: it cannot be installed here.
    """
    env = environment(COMPILED) | {"NODE_PATH": str(node_modules(bench.folder)), "NODE_ENV": "production"}
    with bench.empty_database() as url:

        @contextmanager
        def start() -> Iterator[tuple[int, Process]]:
            port = free_ports(1)[0]
            command = ["node", str(SERVER), str(port), url, SECRET, str(PROCESSES)]
            process = Process(NODE, command, env, bench.folder, bench.folder / "node.log")
            try:
                process.wait_until(lambda: answers(f"http://127.0.0.1:{port}/"), START_SECONDS)
                yield port, process
            finally:
                stop_all([process])

        with Server(start) as server:
            yield System(NODE, url, server, STRIPE, live="SELECT id, name FROM stripe.products")
