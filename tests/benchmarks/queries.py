"""Queries: the pages and answers that operators wait for, over an inbox with a long past."""

import http.client
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from statistics import median, quantiles
from urllib.parse import urlencode

from rich.console import Console
from rich.table import Table
from sqlalchemy import Engine

from tests.benchmarks.access import PER_ORGANIZATION, fill
from tests.benchmarks.history import fill_inbox, fill_lists, settle
from tests.benchmarks.runner import OURS, Mark, Row, Sample
from tests.benchmarks.servers import Bench
from worker.hooks import operate
from worker.mirror import auto_join_policy
from worker.reports import listings

MOST_MS = 100
"""What 95 of 100 answers may take at most."""
MEMBERS_OF_ONE = 10_000
"""Members of the first workspace."""


def _org(n: int) -> str:
    return f"org_{n // PER_ORGANIZATION}"


PAGES: Mapping[str, Callable[[int], str]] = {
    "overview": lambda _: "/ops/",
    "overview, hour": lambda _: "/ops/?range=hour",
    "overview, week": lambda _: "/ops/?range=week",
    "events": lambda _: "/ops/events",
    "events, oldest first": lambda _: "/ops/events?sort=reverse",
    "events, status": lambda _: "/ops/events?status=failed",
    "events, type": lambda _: "/ops/events?type=user.updated",
    "events, workspace": lambda n: f"/ops/events?organization_id={_org(n)}",
    "events, workspace by name": lambda n: f"/ops/events?organization_id=Company+{n // PER_ORGANIZATION}",
    "events, object": lambda n: f"/ops/events?object_id=om_{n}",
    "events, workspace, type, status": lambda n: (
        f"/ops/events?organization_id={_org(n)}&type=organization_membership.updated&status=failed"
    ),
    "events, second page": lambda n: f"/ops/events?after=event_past_{n}",
    "events, dismissed": lambda _: "/ops/events?status=dismissed",
    "events, pending": lambda _: "/ops/events?status=pending",
    "events, error": lambda _: "/ops/events?fingerprint=f3",
    "events, period": lambda _: "/ops/events?status=failed&since=1d&until=2h",
    "event": lambda n: f"/ops/events/event_past_{n}",
    "event, failed": lambda n: f"/ops/events/event_failed_{n % MEMBERS_OF_ONE}",
    "failures": lambda _: "/ops/failures",
    "workspaces": lambda _: "/ops/workspaces",
    "workspaces, later page": lambda n: f"/ops/workspaces?after={_org(n)}",
    "workspaces, name": lambda n: f"/ops/workspaces?name=Company+{n // PER_ORGANIZATION}",
    "workspaces, no match": lambda _: "/ops/workspaces?name=nobody+has+this",
    "workspaces, deleted": lambda _: "/ops/workspaces?state=deleted",
    "workspace of many": lambda _: "/ops/workspaces/org_0",
    "workspace of many, later page": lambda n: f"/ops/workspaces/org_0?after=user_{n % MEMBERS_OF_ONE}",
    "workspace of many, search": lambda n: f"/ops/workspaces/org_0?search=user{n % MEMBERS_OF_ONE}%40",
    "workspace of many, role": lambda _: "/ops/workspaces/org_0?role=admin",
    "workspace, invitations": lambda n: f"/ops/workspaces/org_{n % 20}?show=invitations",
    "workspace, domains": lambda n: f"/ops/workspaces/{_org(n)}?show=domains",
    "workspace, sign-in": lambda n: f"/ops/workspaces/{_org(n)}?show=sign_in",
    "workspace, changes": lambda n: f"/ops/workspaces/{_org(n)}?show=changes",
    "people": lambda _: "/ops/people",
    "people, later page": lambda n: f"/ops/people?after=user_{n}",
    "people, search": lambda n: f"/ops/people?email=user{n}%40",
    "people, no match": lambda _: "/ops/people?email=nobody+has+this",
    "people, deleted": lambda _: "/ops/people?state=deleted",
    "permissions": lambda _: "/ops/permissions",
    "runs": lambda _: "/ops/runs",
    "runs, status": lambda _: "/ops/runs?task=replay&status=queued",
    "run": lambda _: "/ops/runs/run0",
    "run, finding": lambda _: "/ops/runs/run0?kind=user&finding=different",
    "audit": lambda _: "/ops/audit",
    "audit, who": lambda _: "/ops/audit?who=bob",
    "audit, who did nothing": lambda _: "/ops/audit?who=nobody&action=unblock",
    "audit, workspace": lambda n: f"/ops/audit?organization_id={_org(n)}",
    "hooks": lambda _: "/ops/hooks",
    "hooks, failed": lambda _: "/ops/hooks?hook=sessions&status=failed",
    "auto-join, joins": lambda _: "/ops/auto-join?show=joins",
    "auto-join, missing": lambda _: "/ops/auto-join",
    "auto-join, missing, later page": lambda n: f"/ops/auto-join?after=user_{10 + n % (MEMBERS_OF_ONE - 10)}",
    "auto-join, domains": lambda _: "/ops/auto-join?show=domains",
    "auto-join, without admin": lambda _: "/ops/auto-join?show=without_admin",
    "explain, member": lambda n: f"/ops/explain?name=om_{n}",
    "explain, person": lambda n: f"/ops/explain?name=user_{n}",
    "explain, workspace": lambda n: f"/ops/explain?name={_org(n)}",
    "explain, workspace of many": lambda _: "/ops/explain?name=org_0",
    "explain, address": lambda n: f"/ops/explain?name=user{n}%40d{n // PER_ORGANIZATION}.example",
    "search, id": lambda n: f"/ops/search?q=user_{n}",
    "search, external id": lambda n: f"/ops/search?q=key_{n}",
    "search, address": lambda n: f"/ops/search?q=user{n}%40d{n // PER_ORGANIZATION}.example",
    "search, part of an address": lambda n: f"/ops/search?q=user{n}%40",
    "search, name": lambda n: f"/ops/search?q=Company+{n // PER_ORGANIZATION}",
    "search, domain": lambda n: f"/ops/search?q=d{n // PER_ORGANIZATION}.example",
    "search, event": lambda n: f"/ops/search?q=event_past_{n}",
    "search, no match": lambda _: "/ops/search?q=nobody+has+this",
    "API: access": lambda n: f"/api/v1/access?user_id=user_{n}&organization_id={_org(n)}",
    "API: workspaces": lambda n: f"/api/v1/workspaces?after={_org(n)}",
    "API: workspaces, external id": lambda n: f"/api/v1/workspaces?external_id=key_{n // PER_ORGANIZATION}",
    "API: workspace": lambda n: f"/api/v1/workspaces/{_org(n)}",
    "API: members": lambda n: f"/api/v1/members?after=om_{n}",
    "API: members, workspace of many": lambda _: "/api/v1/members?organization_id=org_0",
    "API: members, address": lambda n: f"/api/v1/members?email=user{n}%40d{n // PER_ORGANIZATION}.example",
    "API: invitations": lambda _: "/api/v1/invitations",
    "API: domains": lambda n: f"/api/v1/domains?after=org_domain_{n // PER_ORGANIZATION}",
    "API: sign-in methods": lambda _: "/api/v1/sign-in-methods",
    "API: auto-join": lambda n: f"/api/v1/auto-join?email=new%40d{n // PER_ORGANIZATION}.example",
    "API: events": lambda n: f"/api/v1/events?after=event_past_{n}",
    "API: events, status": lambda _: "/api/v1/events?status=failed",
    "API: event": lambda n: f"/api/v1/events/event_past_{n}",
    "API: audit": lambda _: "/api/v1/audit",
    "API: resyncs": lambda _: "/api/v1/resyncs",
    "API: resync": lambda _: "/api/v1/resyncs/run0",
    "API: replays": lambda _: "/api/v1/replays",
    "API: changes": lambda n: f"/api/v1/changes?after={n}",
    "API: status": lambda _: "/api/v1/status",
    "metrics": lambda _: "/metrics",
}
"""Page → its path, for the number of a person."""
COMMANDS: Mapping[str, Callable[[Engine, int], object]] = {
    "events list": lambda engine, _: listings.list_events(engine),
    "events list --status failed": lambda engine, _: listings.list_events(engine, status="failed"),
    "events failures": lambda engine, _: listings.failures(engine),
    "workspaces": lambda engine, _: listings.with_counts(engine, listings.list_workspaces(engine)),
    "workspaces --domain": lambda engine, n: listings.list_workspaces(engine, domain=f"d{n // 10}.example"),
    "workspaces --without-admin": lambda engine, _: auto_join_policy.without_admin(engine, 50),
    "members": lambda engine, n: listings.list_members(engine, _org(n)),
    "members, workspace of many": lambda engine, _: listings.list_members(engine, "org_0"),
    "auto-join missing": lambda engine, _: auto_join_policy.missing_members(engine, 50),
    "auto-join joins": lambda engine, _: auto_join_policy.joins(engine),
    "hooks list": lambda engine, _: operate.list_hooks(engine),
    "hooks failed": lambda engine, _: operate.deliveries(engine),
    "hooks failures": lambda engine, _: operate.failures(engine),
    "runs list": lambda engine, _: listings.list_runs(engine),
    "audit": lambda engine, _: listings.list_audit(engine, {}),
}
"""Command → its queries, without the start of the command."""


@dataclass(frozen=True, slots=True)
class Times:
    """The 50th and the 95th percentile of a page's answers in milliseconds, and the bytes of its longest one."""

    p50: float
    p95: float
    size: int


def rows(bench: Bench) -> Iterator[Row]:
    """Yield one row for each kind of database, with a mark for each page. Prints all pages of a database as a table."""
    events, members = bench.size((10_000_000, 500_000) if bench.large else (1_000_000, 100_000), (2_000, 200))
    calls = bench.size(30, 2)
    for kind in bench.kinds:
        with bench.database(kind) as url, bench.engine(url) as engine:
            fill(engine, members, 1)
            fill_inbox(engine, events, members)
            fill_lists(engine, min(MEMBERS_OF_ONE, members), members)
            settle(engine)
            with bench.web(url) as (port, _):
                what = f"queries, {kind}: {events:,} rows of the inbox"

                def ours(port: int = port, engine: Engine = engine, what: str = what) -> Sample:
                    found = _measure(port, bench.token, engine, members, calls)
                    _show(what, found)
                    return {f"{page}, p95 ms": times.p95 for page, times in found.items()}

                pages = [*PAGES, *(f"workos-sync {command}" for command in COMMANDS)]
                yield Row(what, {OURS: ours}, [Mark(f"{page}, p95 ms", most=MOST_MS) for page in pages])


def _measure(port: int, token: str, engine: Engine, members: int, calls: int) -> dict[str, Times]:
    """Return the times of every page, API route and command."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=300)) as connection:
        headers = {"Cookie": _sign_in(port, token), "Authorization": f"Bearer {token}"}

        def fetch(address: str) -> int:
            connection.request("GET", address, headers=headers)
            answer = connection.getresponse()
            body = answer.read()
            assert answer.status in (200, 302, 503), (address, answer.status, body[:500])  # 503: the true status
            return len(body)

        found = {page: _times(_fetching(fetch, path), members, calls) for page, path in PAGES.items()}
    for command, call in COMMANDS.items():
        found[f"workos-sync {command}"] = _times(partial(call, engine), members, calls)
    return found


def _fetching(fetch: Callable[[str], int], path: Callable[[int], str]) -> Callable[[int], int]:
    return lambda number: fetch(path(number))


def _times(call: Callable[[int], object], members: int, calls: int) -> Times:
    """Return the times of a call, for people taken at random. The first call is left out: it compiles statements."""
    dice, spent, sizes = random.Random(1), list[float](), [0]
    call(dice.randrange(members))
    for _ in range(calls):
        number = dice.randrange(members)
        began = time.perf_counter()
        answer = call(number)
        spent.append((time.perf_counter() - began) * 1e3)
        sizes.append(answer if isinstance(answer, int) else 0)
    return Times(median(spent), quantiles(spent, n=20)[18], max(sizes))


def _show(what: str, found: Mapping[str, Times]) -> None:
    table = Table("page", "p50 ms", "p95 ms", "bytes", f"above {MOST_MS} ms", title=what)
    for page, times in found.items():
        above = "ABOVE" if times.p95 > MOST_MS else ""
        table.add_row(page, f"{times.p50:.1f}", f"{times.p95:.1f}", f"{times.size:,}" if times.size else "", above)
    Console(width=110, highlight=False).print(table)


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
