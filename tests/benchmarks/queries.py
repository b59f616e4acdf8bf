"""Queries: the pages and answers that operators wait for, over an inbox with a long past."""

import http.client
import random
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from statistics import quantiles
from urllib.parse import urlencode

from tests.benchmarks.access import PER_ORGANIZATION, fill
from tests.benchmarks.history import fill_inbox, fill_lists, settle
from tests.benchmarks.runner import OURS, Mark, Row, Sample
from tests.benchmarks.servers import Bench

MEMBERS_OF_ONE = 10_000
"""Members of the first workspace."""
PAGES: dict[str, Callable[[int], str]] = {
    "overview": lambda _: "/ops/",
    "events": lambda _: "/ops/events",
    "events, status": lambda _: "/ops/events?status=failed",
    "events, type": lambda _: "/ops/events?type=user.updated",
    "events, workspace": lambda n: f"/ops/events?organization_id=org_{n // PER_ORGANIZATION}",
    "events, workspace, type, status": lambda n: (
        f"/ops/events?organization_id=org_{n // PER_ORGANIZATION}&type=organization_membership.updated&status=failed"
    ),
    "events, second page": lambda n: f"/ops/events?after=event_past_{n}",
    "events, dismissed": lambda _: "/ops/events?status=dismissed",
    "events, error": lambda _: "/ops/events?fingerprint=f3",
    "events, period": lambda _: "/ops/events?status=failed&since=3d&until=1d",
    "event": lambda n: f"/ops/events/event_past_{n}",
    "failures": lambda _: "/ops/failures",
    "workspaces": lambda _: "/ops/workspaces",
    "workspaces, name": lambda n: f"/ops/workspaces?name=Company+{n // PER_ORGANIZATION}",
    "workspace of many": lambda _: "/ops/workspaces/org_0",
    "workspace of many, later page": lambda n: f"/ops/workspaces/org_0?after=user_{n % MEMBERS_OF_ONE}",
    "workspace of many, search": lambda n: f"/ops/workspaces/org_0?search=user{n % MEMBERS_OF_ONE}%40",
    "workspace, changes": lambda n: f"/ops/workspaces/org_{n // PER_ORGANIZATION}?show=changes",
    "people": lambda _: "/ops/people",
    "people, later page": lambda n: f"/ops/people?after=user_{n}",
    "people, search": lambda n: f"/ops/people?email=user{n}%40",
    "runs": lambda _: "/ops/runs",
    "run": lambda _: "/ops/runs/run0",
    "run, finding": lambda _: "/ops/runs/run0?kind=user&finding=different",
    "audit": lambda _: "/ops/audit",
    "audit, who": lambda _: "/ops/audit?who=bob",
    "hooks": lambda _: "/ops/hooks",
    "hooks, failed": lambda _: "/ops/hooks?hook=sessions&status=failed",
    "auto-join, joins": lambda _: "/ops/auto-join?show=joins",
    "auto-join, missing": lambda _: "/ops/auto-join",
    "auto-join, domains": lambda _: "/ops/auto-join?show=domains",
    "auto-join, without admin": lambda _: "/ops/auto-join?show=without_admin",
    "explain, member": lambda n: f"/ops/explain?name=om_{n}",
    "explain, address": lambda n: f"/ops/explain?name=user{n}%40d{n // PER_ORGANIZATION}.example",
}
"""Page → its path, for the number of a person."""


def rows(bench: Bench) -> Iterator[Row]:
    """Yield one row for each kind of database, with a mark for each page."""
    events, members = bench.size((10_000_000, 500_000) if bench.large else (1_000_000, 100_000), (2_000, 200))
    calls = bench.size(100, 2)
    for kind in bench.kinds:
        with bench.database(kind) as url:
            with bench.engine(url) as engine:
                fill(engine, members)
                fill_inbox(engine, events, members)
                fill_lists(engine, min(MEMBERS_OF_ONE, members), members)
                settle(engine)
            with bench.web(url) as (port, _):
                cookie = _sign_in(port, bench.token)

                def ours(port: int = port, cookie: str = cookie) -> Sample:
                    return {f"{page}, p95 ms": _p95(port, cookie, path, members, calls) for page, path in PAGES.items()}

                what = f"queries, {kind}: {events:,} rows of the inbox"
                yield Row(what, {OURS: ours}, [Mark(f"{page}, p95 ms", most=100) for page in PAGES])


def _sign_in(port: int, token: str) -> str:
    with closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        connection.request("GET", "/ops/sign-in")
        page = connection.getresponse()
        cookie, text = page.headers["Set-Cookie"].partition(";")[0], page.read().decode()
        csrf = text.partition('name="csrf_token" value="')[2].partition('"')[0]
        body = urlencode({"token": token, "csrf_token": csrf})
        connection.request("POST", "/ops/sign-in", body, form | {"Cookie": cookie})
        answer = connection.getresponse()
        assert answer.status == 302, answer.read()
        return answer.headers["Set-Cookie"].partition(";")[0]


def _p95(port: int, cookie: str, path: Callable[[int], str], members: int, calls: int) -> float:
    dice, spent = random.Random(1), list[float]()
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=300)) as connection:
        for _ in range(calls):
            began = time.perf_counter()
            address = path(dice.randrange(members))
            connection.request("GET", address, headers={"Cookie": cookie})
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200, (address, answer.status)
            spent.append((time.perf_counter() - began) * 1e3)
    return quantiles(spent, n=20)[18]
