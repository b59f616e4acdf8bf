"""Resync without latency and limits: what is left is our own work, and the sandbox's."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import httpx2
from redis import Redis
from sqlalchemy import select

from models.database import read_transaction
from models.tables import Run
from tests.benchmarks.runner import LIMIT, OURS, Mark, Row, Sample
from tests.benchmarks.sandboxed import workos
from tests.benchmarks.servers import Bench
from tests.support.resync import CLIENT_ID, UNLIMITED, resync
from worker.sandbox.service import API_KEY
from worker.workos_api.bucket import Buckets
from worker.workos_api.client import open_client

RATE = "calls/s"
AT_ONCE = 10
"""As many calls in flight as a resync has."""
EVERYBODY = {"statuses": "active,inactive,pending"}


def rows(bench: Bench) -> Iterator[Row]:
    """Yield it beside listing the same pages with plain httpx2 (as WorkOS's SDK does) and throwing them away."""
    organizations, members = bench.size((2_000, 10), (10, 2))
    with workos(bench, organizations, members, {"rate_limits": False}) as address:
        for kind in bench.kinds:

            def ours(kind: str = kind) -> Sample:
                with bench.database(kind) as url:
                    return {RATE: _resynced(bench, url, address)}

            what = f"resync without latency, {kind}: {organizations:,} organizations of {members}, limit: httpx2"
            yield Row(what, {OURS: ours, LIMIT: lambda: {RATE: _listed(address)}}, [Mark(RATE, LIMIT, least=0.4)])


def _resynced(bench: Bench, url: str, address: str) -> float:
    """Resync in this process, with a rate limit far above what it reaches, and return calls a second."""
    bench.empty_redis()
    with bench.engine(url) as engine, Redis.from_url(bench.redis_url) as redis:
        buckets = Buckets(redis, UNLIMITED)
        with closing(open_client(API_KEY, CLIENT_ID, address, buckets, timeout_seconds=30)) as workos:
            began = time.perf_counter()
            run_id = resync(engine, workos)
            took = time.perf_counter() - began
        with read_transaction(engine) as tx:
            return tx.execute(select(Run.calls).where(Run.id == run_id)).scalar_one() / took


def _listed(address: str) -> float:
    """List everything a resync lists, and return calls a second."""
    headers = {"Authorization": f"Bearer {API_KEY}"}
    with httpx2.Client(base_url=address, headers=headers, timeout=30) as client, ThreadPoolExecutor(AT_ONCE) as pool:
        began, members = time.perf_counter(), "/user_management/organization_memberships"
        people = pool.submit(_pages, client, "/user_management/users", {})
        client.get("/authorization/roles").raise_for_status()
        calls, organizations = _pages(client, "/organizations", {})
        asked = [pool.submit(_pages, client, members, {"organization_id": id} | EVERYBODY) for id in organizations]
        calls += 1 + people.result()[0] + sum(pages.result()[0] for pages in asked)
        return calls / (time.perf_counter() - began)


def _pages(client: httpx2.Client, path: str, filters: dict[str, str]) -> tuple[int, list[str]]:
    """Read all pages of a listing; returns how many there were, and the ids."""
    calls, ids, after = 0, list[str](), ""
    while True:
        more = {"after": after} if after else {}
        page = client.get(path, params={"limit": "100", "order": "asc", **filters, **more}).raise_for_status().json()
        calls, after = calls + 1, page["list_metadata"]["after"]
        ids += [item["id"] for item in page["data"]]
        if not after:
            return calls, ids
