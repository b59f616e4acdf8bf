"""Helpers of the resync tests: run a resync, deliver events, read the report."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

from redis import Redis
from sqlalchemy import Connection, Engine, delete, func, select, update

from models.database import in_transaction, read_transaction
from models.tables import Base, Change, Drift, MirrorState, Read, Run, Tail
from models.types import db_now_plus
from tests.support import JSON, apply_all, rows
from tests.support.actors import by
from tests.support.stories import store
from worker.kinds import KINDS
from worker.kinds.role import Role
from worker.repair.environment import MARGIN
from worker.repair.reads import work_due
from worker.repair.resync.resync import Resync, start
from worker.runs import lease
from worker.sandbox import Sandbox, World
from worker.workos_api.bucket import Buckets
from worker.workos_api.client import Page, ReadResult, WorkOSClient, open_client

CLIENT_ID = "client_sandbox"
UNLIMITED = 1000.0
ORGANIZATIONS, USERS, MEMBERSHIPS = "/organizations$", "/user_management/users$", "/user_management/organization_mem"
"""Paths of listings, as patterns for the sandbox's faults."""


class Clock:
    """WorkOS's time, which advances only when the test advances it."""

    def __init__(self) -> None:
        self.now = datetime(2026, 3, 1, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, **by: float) -> None:
        self.now += timedelta(**by)


class Between(WorkOSClient):
    """A client of WorkOS that calls `happens` after each answer, before the answer is used."""

    def __init__(self, inner: WorkOSClient, happens: Callable[[str], object]) -> None:
        super().__init__(inner._sdk, inner._buckets, inner._count)
        self._happens = happens

    def list_page(
        self, path: tuple[str, ...], params: JSON | None = None, after: str | None = None, *, paged: bool = True
    ) -> Page:
        page = super().list_page(path, params, after, paged=paged)
        self._happens("/".join(path))
        return page

    def read(self, path: tuple[str, ...], kind: str, id_field: str = "id") -> ReadResult:
        found = super().read(path, kind, id_field)
        self._happens("/".join(path))
        return found


def client_of(sandbox: Sandbox, redis: Redis, *, key: str | None = None, timeout: float = 10.0) -> WorkOSClient:
    """The worker's client of the sandbox, without rate limits."""
    buckets = Buckets(redis, UNLIMITED)
    return open_client(key or sandbox.api_key, CLIENT_ID, sandbox.base_url, buckets, timeout_seconds=timeout)


def settings_of(sandbox: Sandbox) -> dict[str, str]:
    """The settings that name the sandbox, as environment variables."""
    return {
        "WORKOS_API_KEY": sandbox.api_key,
        "WORKOS_CLIENT_ID": CLIENT_ID,
        "WORKOS_BASE_URL": sandbox.base_url,
    }


def resync(engine: Engine, workos: WorkOSClient, **scope: Any) -> str:
    """Run a complete resync; returns its id."""
    run_id = start(engine, by("test", "why"), **scope)
    assert continue_run(engine, workos, run_id)
    return run_id


def continue_run(
    engine: Engine, workos: WorkOSClient, run_id: str, stopping: Callable[[], bool] = lambda: False
) -> bool:
    """Work on a run as a worker does; returns whether it is finished."""
    with lease(engine, run_id) as held:
        assert held is not None
        return Resync(engine, workos, held, stopping).work()


def empty(engine: Engine, clock: Clock) -> None:
    """Empty a database until it is only migrated and bound; creating one for each example takes too long."""

    def drop_all(tx: Connection) -> None:
        for table in Base.metadata.sorted_tables:
            if table.name not in ("mirror", "public_domains", "tail"):
                tx.execute(delete(table))
        nothing = (
            "cursor",
            "cursor_at",
            "inbox_to",
            "inbox_at",
            "complete_to",
            "backfilled_at",
            "last_resync_at",
            "verified_at",
            "verified_rows_to",
            "listed_kinds",
        )
        tx.execute(
            update(MirrorState).values(dict.fromkeys(nothing) | {"cursor_at": clock() - MARGIN})
        )  # as binding does
        unread = ("cursor", "read_to", "read_at", "complete_to", "complete_at", "error")
        tx.execute(update(Tail).values(dict.fromkeys(unread) | {"late_events": 0}))

    in_transaction(engine, drop_all)


def expire_lease(engine: Engine, run_id: str) -> None:
    """Expire the lease of a run."""
    in_transaction(
        engine, lambda tx: tx.execute(update(Run).where(Run.id == run_id).values(leased_until=db_now_plus(-1)))
    )


def make_reads_due(engine: Engine) -> None:
    """Make every requested read due."""
    in_transaction(engine, lambda tx: tx.execute(update(Read).values(due_at=db_now_plus(-1))))


def read_due(engine: Engine, workos: WorkOSClient) -> int:
    """Make every requested read due, and read the objects; returns how many were read."""
    make_reads_due(engine)
    return work_due(engine, workos, lambda: False)


def deliver(engine: Engine, events: Iterable[JSON]) -> None:
    """Put events into the inbox and apply them."""
    if batch := list(events):
        store(engine, batch)
        apply_all(engine)


def catch_up_with(engine: Engine, world: World) -> None:
    """Deliver and apply every event of a world."""
    deliver(engine, world.events)


def report(engine: Engine, run_id: str) -> list[JSON]:
    return [row for row in rows(engine, Drift) if row["run_id"] == run_id]


def found(engine: Engine, run_id: str) -> dict[tuple[str, str], tuple[str, str]]:
    """The report of a run: (kind, id) → (finding, action)."""
    return {(row["kind"], row["object_id"]): (row["finding"], row["action"]) for row in report(engine, run_id)}


def changes(engine: Engine) -> int:
    with read_transaction(engine) as tx:
        return tx.execute(select(func.count()).select_from(Change)).scalar_one()


def live(engine: Engine) -> dict[str, set[str]]:
    """Kind → ids of live objects."""
    return {
        name: {row["id"] for row in rows(engine, kind.table) if not row["deleted_by"]} for name, kind in KINDS.items()
    }


def run_row(engine: Engine, run_id: str) -> JSON:
    return next(row for row in rows(engine, Run) if row["id"] == run_id)


def environment_roles(engine: Engine) -> set[str]:
    return {row["slug"] for row in rows(engine, Role) if not row["deleted_by"] and row["organization_id"] is None}


def small_life(world: World, companies: int = 3, people: int = 4) -> None:
    """Create companies with a verified domain and members."""
    for number in range(companies):
        made = world.create_organization(f"Company {number}", domains=[(f"company{number}.example", "verified")])
        for place in range(people):
            user = world.create_user(f"person{place}@company{number}.example")
            world.create_membership(made["id"], user["id"], role="admin" if place == 0 else "member")


def away_after(sandbox: Sandbox, calls: int, status: int) -> None:
    """Let WorkOS answer `calls` more calls, and then fail every call with `status` until `comes_back`."""
    answered = count(1)

    def leave(*_: object) -> None:
        if next(answered) == calls:
            sandbox.faults.fail(status=status, times=None)

    sandbox.on_request = leave


def comes_back(sandbox: Sandbox) -> None:
    sandbox.on_request = None
    sandbox.faults.clear()


def quietly(world: World, act: Callable[[], Any]) -> None:
    """Do something in a world without events."""
    with world.silently(), suppress(KeyError):
        act()


def mirror_of(engine: Engine, sandbox: Sandbox, workos: WorkOSClient, workspaces: int) -> dict[str, set[str]]:
    """Mirror workspaces of two members by events and a resync; returns the live ids."""
    small_life(sandbox.world, workspaces, 2)
    catch_up_with(engine, sandbox.world)
    resync(engine, workos)
    return live(engine)
