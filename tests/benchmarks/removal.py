"""Removal: from sending the webhook of a deleted membership until `role_of` answers None, on an idle system."""

import http.client
import json
import time
import uuid
from collections.abc import Iterator
from contextlib import closing

from sqlalchemy import Engine

from models.access import role_of
from models.database import session
from tests.benchmarks.deliveries import PATH
from tests.benchmarks.latency import P50, P99, percentiles
from tests.benchmarks.runner import OURS, Mark, Row, Sample
from tests.benchmarks.servers import Bench
from tests.benchmarks.workers import workers
from tests.support import JSON, apply_all, made, sign
from tests.support.stories import store

ORG = "org_bench"
IDLE_SECONDS = 0.4
"""Before each removal: longer than a drain waits for more."""
POLL_SECONDS = 0.0005
MARKS = [Mark(P50, most=6), Mark(P99, most=20)]


def rows(bench: Bench) -> Iterator[Row]:
    """Yield it on each kind of database, with the workers that run by default."""
    number = bench.size(100, 3)
    for kind in bench.kinds:
        with bench.database(kind) as url, bench.engine(url) as engine, bench.web(url) as (port, _):

            def ours(url: str = url, engine: Engine = engine, port: int = port) -> Sample:
                users = [f"user_{uuid.uuid4().hex}" for _ in range(number)]
                store(engine, [made("organization.created", id=ORG), *_joined(users)])
                apply_all(engine)
                with workers(bench, url, 2):
                    return percentiles([_removed(engine, port, user) for user in users])

            yield Row(f"removal webhook sent to role_of None, {kind}, idle", {OURS: ours}, MARKS)


def _joined(users: list[str]) -> Iterator[JSON]:
    for user in users:
        yield made("user.created", id=user)
        yield made(
            "organization_membership.created", id=f"om_{user}", user_id=user, organization_id=ORG, status="active"
        )


def _removed(engine: Engine, port: int, user: str) -> float:
    deleted = made("organization_membership.deleted", 1, id=f"om_{user}", user_id=user, organization_id=ORG)
    body = json.dumps(deleted).encode()
    assert _role(engine, user) is not None
    time.sleep(IDLE_SECONDS)
    with closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
        connection.connect()
        began = time.perf_counter()
        connection.request("POST", PATH, body, {"WorkOS-Signature": sign(body)})
        assert connection.getresponse().status == 200
        while _role(engine, user) is not None:
            assert time.perf_counter() - began < 30, "not removed"
            time.sleep(POLL_SECONDS)
    return time.perf_counter() - began


def _role(engine: Engine, user: str) -> str | None:
    with session(engine) as opened:
        return role_of(opened, user, ORG)
