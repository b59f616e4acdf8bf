"""Resync: how near a full one comes to what WorkOS's documented rate limits permit, with latency."""

from collections.abc import Iterator

from tests.benchmarks.runner import OURS, Mark, Row, Sample
from tests.benchmarks.sandboxed import least_calls, resync, workos
from tests.benchmarks.servers import Bench
from worker.workos_api.bucket import ALL

PER_SECOND = ALL.calls / ALL.seconds
"""All calls count against the address's limit, as narrow as any here."""
MIRRORS = ("empty", "equal")
OF_RATE = "(calls / permitted rate) / wall, {} mirror"
CALLS = "calls / least calls, {} mirror"


def rows(bench: Bench) -> Iterator[Row]:
    """Yield one row for each kind of database: on an empty mirror everything is written, on an equal one nothing is."""
    organizations, members, latency = bench.size((10_000, 10, 0.05), (10, 2, 0.0))
    least = least_calls(organizations, members)
    with workos(bench, organizations, members, {"latency": latency, "rate_limits": True}) as address:
        for kind in bench.kinds:

            def ours(kind: str = kind) -> Sample:
                figures: dict[str, float] = {}
                with bench.database(kind) as url:
                    for mirror in MIRRORS:
                        bench.empty_redis()  # nothing of the rate was used
                        run = resync(bench, url, address)
                        figures[OF_RATE.format(mirror)] = run.calls / PER_SECOND / run.seconds
                        figures[CALLS.format(mirror)] = run.calls / least
                return figures

            what = f"resync, {kind}: {organizations:,} organizations of {members}, {latency * 1e3:g} ms"
            marks = [Mark(OF_RATE.format(mirror), least=0.9) for mirror in MIRRORS]
            yield Row(what, {OURS: ours}, [*marks, Mark(CALLS.format("empty"))], most_rounds=1)
