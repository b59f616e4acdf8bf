"""Traces: the CPU time of `web` and `worker` with the extra `otel` not installed, off, and on at 1 % of the traces."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import psutil
from redis import Redis

from tests.benchmarks.deliveries import send, signed
from tests.benchmarks.runner import OURS, Mark, Row, Sample
from tests.benchmarks.servers import START_SECONDS, Bench
from tests.benchmarks.workers import listening
from tests.support import statuses
from tests.support.collector import collecting
from tests.support.stack.machine import answers, free_ports

CPU = "CPU s/1,000 events"
NOT_INSTALLED, OFF = "not installed", "off"
CONNECTIONS = 16
MOST = 1.15


def rows(bench: Bench) -> Iterator[Row]:
    """Yield the three, interleaved, on each kind of database."""
    with collecting() as collector:
        on = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_TRACES_SAMPLER_ARG": 0.01}
        for kind in bench.kinds:
            contenders: dict[str, Callable[[], Sample]] = {
                NOT_INSTALLED: partial(_seconds, bench, kind, "tests.benchmarks.without_otel"),
                OFF: partial(_seconds, bench, kind, "worker.cli"),
                OURS: partial(_seconds, bench, kind, "worker.cli", **on),
            }
            marks = [Mark(CPU, NOT_INSTALLED, most=MOST), Mark(CPU, OFF, most=MOST)]
            yield Row(f"traces on at 1 %, {kind}", contenders, marks)
        assert bench.tiny or collector.spans


def _seconds(bench: Bench, kind: str, program: str, **settings: Any) -> Sample:
    """Let new processes receive and apply deliveries, and return their CPU time, user and system."""
    number = bench.size(10_000, 50)
    [port] = free_ports(1)
    bench.empty_redis()
    with bench.database(kind) as url, Redis.from_url(bench.redis_url) as redis, bench.engine(url) as engine:
        env = bench.environment(url, PORT=port, **settings)
        with (
            bench.running("web", ["-m", program, "web"], env) as web,
            bench.running("worker", ["-m", program, "worker"], env) as worker,
        ):
            web.wait_until(lambda: answers(f"http://127.0.0.1:{port}/readyz"), START_SECONDS)
            worker.wait_until(lambda: listening(redis) > 2, START_SECONDS)
            family = [each for above in (web, worker) for each in _family(above.pid)]
            before = _used(family)
            assert send(port, signed(number), CONNECTIONS)["failed"] == 0
            while statuses(engine) != {"done": number}:
                time.sleep(0.05)
            used = _used(family) - before
    return {CPU: used / number * 1_000}


def _family(pid: int) -> list[psutil.Process]:
    above = psutil.Process(pid)
    return [above, *above.children(recursive=True)]


def _used(family: list[psutil.Process]) -> float:
    return sum(each.cpu_times().user + each.cpu_times().system for each in family)
