"""Helpers of the tests that end sessions: people with sessions, and rounds of the worker that revokes them."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from redis import Redis
from sqlalchemy import Engine, update

from models.database import in_transaction
from models.tables import Revocation
from models.types import db_now_plus
from tests.support import JSON, rows
from tests.support.auto_join import apply_events, mark_as_filled
from tests.support.resync import Clock, client_of
from worker.metrics import Counters
from worker.mirror import lost_access
from worker.repair.sessions import SessionRevoker
from worker.sandbox import Sandbox, World
from worker.workos_api.client import WorkOSClient

LISTING = "/user_management/users/.*/sessions"
REVOKE = "/user_management/sessions/revoke"
"""Paths, as patterns for the sandbox's faults."""


@dataclass
class SessionStage:
    """A mirror with `REVOKE_SESSIONS=on`, and its WorkOS, whose time advances only when the test advances it."""

    engine: Engine
    sandbox: Sandbox
    clock: Clock
    workos: WorkOSClient
    counters: Counters

    @property
    def world(self) -> World:
        return self.sandbox.world

    def workspace(self) -> str:
        return str(self.world.create_organization("Acme")["id"])

    def member(self, organization_id: str) -> tuple[str, str]:
        """Create a member of a workspace; returns the ids of the user and the membership."""
        user = self.world.create_user(f"person{len(self.world.events)}@acme.example")["id"]
        return user, self.world.create_membership(organization_id, user)["id"]

    def sign_in(self, user_id: str, organization_id: str | None = None, **how: Any) -> str:
        """Open a session; returns its id."""
        return str(self.world.create_session(user_id, organization_id, **how)["id"])

    def member_with_session(self) -> tuple[str, str, str]:
        """Create a workspace with a member who is signed in; returns the ids of workspace, user and membership."""
        org = self.workspace()
        user, membership = self.member(org)
        self.sign_in(user, org)
        self.receive_events()
        return org, user, membership

    def receive_events(self) -> None:
        """Deliver and apply every event of WorkOS."""
        apply_events(self.engine, self.world.events)

    def run_worker(self, stopping: Callable[[], bool] = lambda: False) -> None:
        """Run the worker once, with every revocation due."""
        due = update(Revocation).values(due_at=db_now_plus(-1))
        in_transaction(self.engine, lambda tx: tx.execute(due))
        self.revoke_due(stopping)

    def revoke_due(self, stopping: Callable[[], bool] = lambda: False) -> None:
        """Run the worker once."""
        SessionRevoker(self.engine, self.workos, self.counters, stopping).revoke_due()

    def settle(self) -> None:
        """Apply every event, and run the worker until no revocation is pending."""
        self.receive_events()
        for _ in range(20):
            self.run_worker()
            if not pending(self.engine):
                return
        raise AssertionError(pending(self.engine))

    def active(self) -> set[str]:
        """The ids of sessions that have not ended."""
        return {id for id, session in self.world.sessions.items() if session["status"] == "active"}


@contextmanager
def session_stage(engine: Engine, redis: Redis) -> Iterator[SessionStage]:
    """A filled mirror with `REVOKE_SESSIONS=on` for ten seconds, and a sandbox WorkOS."""
    lost_access.adopt(engine, on=True)
    mark_as_filled(engine)
    clock = Clock()
    clock.now = datetime.now(UTC)
    clock.advance(seconds=10)
    with Sandbox(seed=7, clock=clock) as sandbox, closing(client_of(sandbox, redis)) as workos:
        yield SessionStage(engine, sandbox, clock, workos, Counters(redis, in_background=False))


def pending(engine: Engine) -> list[JSON]:
    return [row for row in rows(engine, Revocation) if row["state"] == "pending"]
