"""Peer: events acknowledged and applied per second, their latency and their cost, beside two peers.

The load generator is that of `acknowledge`. Beside it a probe sends 20 events a second and watches for their rows.
"""

import time
from collections.abc import Iterator
from functools import partial

from tests.benchmarks.deliveries import GENERATOR, send, send_for
from tests.benchmarks.peers.meter import Meter
from tests.benchmarks.peers.node import NODE
from tests.benchmarks.peers.probe import Probe
from tests.benchmarks.peers.running import SYSTEMS, available
from tests.benchmarks.peers.system import System
from tests.benchmarks.peers.versions import Feed
from tests.benchmarks.runner import Mark, Row, Sample
from tests.benchmarks.servers import Bench, on_server

ACKNOWLEDGED, APPLIED = "acknowledged/s", "applied/s"
P50, P99 = "p50 ms to 200", "p99 ms to 200"
APPLIED_P50, APPLIED_P99 = "p50 ms to applied", "p99 ms to applied"
CPU, POSTGRES_CPU = "CPU s per 1,000", "PostgreSQL CPU s per 1,000"
WAL, MEMORY, FAILED = "WAL MB per 1,000", "PSS MB", "failed"
"""Per 1,000 acknowledged events. CPU is that of PostgreSQL and Valkey too. PSS is the proportional memory of the
system's processes, without PostgreSQL, when the last event is applied."""
MOST_PER_SECOND = 9_000
"""More than any of them takes, so that none is sent twice."""
TARGETS = {(APPLIED, NODE): (1.0, None), (P99, NODE): (None, 1.5)}
"""(figure, peer) → the least and the most that the ratio may be."""
SHOWN = (ACKNOWLEDGED, APPLIED, P50, P99, APPLIED_P50, APPLIED_P99, CPU, POSTGRES_CPU, WAL, MEMORY)


def rows(bench: Bench) -> Iterator[Row]:
    """Yield ours beside the peers that can run here, for each number of connections.

    Each sample starts a system with an empty database and creates all objects before it measures. No other system
    runs meanwhile, because its autovacuum would count as write-ahead log of this one.
    """
    found = available(bench)
    peers: list[str | None] = [*found.peers] or [None]
    marks = [Mark(FAILED, most=0), *(_mark(figure, peer) for figure in SHOWN for peer in peers)]
    for connections in bench.size((16, 64), (4,)):
        contenders = {name: partial(_sample, bench, name, connections) for name in found.names}
        yield Row(f"peer, {connections} connections, {GENERATOR}{found.note}", contenders, marks)


def _mark(figure: str, peer: str | None) -> Mark:
    least, most = TARGETS.get((figure, peer or ""), (None, None))
    return Mark(figure, peer, least=least, most=most)


def _sample(bench: Bench, name: str, connections: int) -> Sample:
    with SYSTEMS[name](bench) as system:
        feed = Feed(bench.size(5_000, 50))
        send(system.server.port, map(system.form.delivery, feed.take(feed.objects)), connections=16)
        system.wait_until_applied()
        on_server(bench.postgres, "CHECKPOINT")  # not while something is measured
        return _measure(bench, system, feed, connections)


def _measure(bench: Bench, system: System, feed: Feed, connections: int) -> Sample:
    """Send newer versions of the same objects for some seconds, and wait until the last is applied."""
    seconds = bench.size(5, 1)
    deliveries = list(map(system.form.delivery, feed.take(seconds * MOST_PER_SECOND)))
    meter = Meter(bench, system)
    before = meter.used()
    with Probe(system) as probe:
        sent = send_for(seconds, system.server.port, deliveries, connections)
    ended, backlog = time.perf_counter(), system.wait_until_applied()
    loaded = sent["sent"] / sent["deliveries/s"]
    applied = probe.percentiles(since=ended - loaded)  # not those while the load generator started
    used, megabytes = meter.used() - before, meter.megabytes()
    acknowledged = sent["sent"] - sent["failed"]
    thousands = acknowledged / 1_000
    return {
        ACKNOWLEDGED: acknowledged / loaded,
        APPLIED: acknowledged / (loaded + backlog),
        P50: sent["p50 ms"],
        P99: sent["p99 ms"],
        APPLIED_P50: applied[0] * 1e3,
        APPLIED_P99: applied[1] * 1e3,
        CPU: (used.own + used.postgres) / thousands,
        POSTGRES_CPU: used.postgres / thousands,
        WAL: used.wal / 1e6 / thousands,
        MEMORY: megabytes,
        FAILED: sent["failed"],
    }
