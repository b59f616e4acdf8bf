"""Helpers of the auto-join tests: modes, sign-ups, and rounds of the provisioning worker."""

from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial

from redis import Redis
from sqlalchemy import Connection, Engine, select, update

from models.access import AutoJoin, auto_join_for
from models.database import in_transaction, read_transaction, session
from models.tables import AutoJoin as AutoJoinRow
from models.tables import Join, JoinSearch, MirrorState
from models.types import db_now_plus
from tests.support import JSON, apply_all, rows
from tests.support.resync import Clock, client_of
from tests.support.stories import delivered
from worker.inbox.store import accept_from_api
from worker.kinds.domain import Domain
from worker.mirror import auto_join, auto_join_policy
from worker.provisioning import provision
from worker.queue.doorbell import Doorbell
from worker.repair.catch_up import catch_up, update_complete_to
from worker.repair.work import catch_up_or_resync
from worker.sandbox import Sandbox, World
from worker.workos_api.client import WorkOSClient

LAG = timedelta(seconds=3)
"""Longer than the sandbox delays its newest events."""


def set_auto_join(engine: Engine, mode: str = "provision", *, existing: bool = False) -> None:
    """Put `AUTO_JOIN` in force, as a worker does at its start."""
    auto_join_policy.adopt(engine, mode, existing=existing)


def mark_as_filled(engine: Engine) -> None:
    """Mark the mirror as filled, as after the first resync and catch-up."""
    filled = {"backfill_from": db_now_plus(-86_400), "backfilled_at": db_now_plus(0), "last_resync_at": db_now_plus(0)}
    in_transaction(engine, lambda tx: tx.execute(update(MirrorState).values(filled)))


def company(world: World, domain: str = "acme.example", state: str = "verified") -> str:
    """Create a workspace with a domain; returns its id."""
    return str(world.create_organization(domain, domains=[(domain, state)])["id"])


def sign_up(world: World, email: str = "ann@acme.example") -> str:
    """Create a user with a verified address; returns its id."""
    return str(world.create_user(email, email_verified=True)["id"])


def apply_events(engine: Engine, events: Iterable[JSON]) -> None:
    """Put events into the inbox, known ones included, and apply them."""

    def take(tx: Connection) -> None:
        for event in list(events):
            accept_from_api(tx, delivered(event))

    in_transaction(engine, take)
    apply_all(engine)


def create_calls(sandbox: Sandbox) -> int:
    """The number of calls that create a membership."""
    return sum(number for (method, _), number in sandbox.calls.items() if method == "POST")


@dataclass
class Stage:
    """A mirror that creates memberships, and its WorkOS, whose time advances only when the test advances it."""

    engine: Engine
    sandbox: Sandbox
    clock: Clock
    workos: WorkOSClient
    redis: Redis

    @property
    def world(self) -> World:
        return self.sandbox.world

    def receive_events(self) -> None:
        """Deliver and apply every event of WorkOS."""
        apply_events(self.engine, self.world.events)

    def let_time_pass(self) -> None:
        """Wait until the events API shows everything; read and apply it."""
        self.clock.advance(seconds=10)
        catch_up(self.engine, self.workos, lag=LAG)
        apply_all(self.engine)
        update_complete_to(self.engine)

    def run_worker(self) -> None:
        """Run one round of the provisioning worker, with every join due."""
        in_transaction(self.engine, lambda tx: tx.execute(update(Join).values(due_at=db_now_plus(-1))))
        read_events = partial(catch_up_or_resync, self.engine, self.workos, lag=LAG)
        applied = partial(update_complete_to, self.engine)
        provision(self.engine, self.workos, LAG, Doorbell(self.redis, "drain"), read_events, applied)

    def settle(self, most: int = 20) -> None:
        """Run rounds until no join is open, then deliver the events they caused."""
        self.receive_events()
        while most and open_joins(self.engine) + len(rows(self.engine, JoinSearch)):
            self.run_worker()
            self.let_time_pass()
            most -= 1
        self.receive_events()


@contextmanager
def provisioning_stage(engine: Engine, redis: Redis) -> Iterator[Stage]:
    """A filled mirror in mode `provision`, and a sandbox WorkOS whose clock starts at the present second."""
    set_auto_join(engine)
    mark_as_filled(engine)
    clock = Clock()
    clock.now = datetime.now(UTC).replace(microsecond=0)
    with Sandbox(seed=7, clock=clock) as sandbox, closing(client_of(sandbox, redis)) as workos:
        yield Stage(engine, sandbox, clock, workos, redis)


def open_joins(engine: Engine) -> int:
    return sum(row["state"] in ("pending", "undo") for row in rows(engine, Join))


def join_of(engine: Engine, user_id: str) -> JSON:
    return next(row for row in rows(engine, Join) if row["user_id"] == user_id)


def joins_of(engine: Engine) -> dict[str, str]:
    """User → state of the join."""
    with read_transaction(engine) as tx:
        return {row.user_id: row.state for row in tx.execute(select(Join.user_id, Join.state))}


def auto_join_answer(engine: Engine, email: str) -> AutoJoin | None:
    """The answer that a host gets at a sign-up."""
    with session(engine) as opened:
        return auto_join_for(opened, email)


def members_at_workos(world: World) -> dict[tuple[str, str], list[str]]:
    """Organization and user → the statuses of their memberships."""
    found: dict[tuple[str, str], list[str]] = {}
    for membership in world.memberships.values():
        key = (membership["organization_id"], membership["user_id"])
        found.setdefault(key, []).append(membership["status"])
    return found


def outdated_states(engine: Engine) -> list[str]:
    """The ids of domains whose recorded auto-join state is missing or wrong."""
    with read_transaction(engine) as tx:
        found = auto_join.domain_claims(tx, tx.execute(select(Domain.id)).scalars())
        noted = {row.domain_id: (row.state, row.reason) for row in tx.execute(select(AutoJoinRow.__table__))}
    return [id for id, now in auto_join.auto_join_statuses(found).items() if noted.get(id) != now]
