"""REVOKE_SESSIONS=on in real processes: sessions end within seconds, although the worker is killed with -9."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, update

from models.database import in_transaction
from models.tables import MirrorState, Revocation
from models.types import db_now_plus
from models.views import workspace_members
from tests.support import SECRET, rows
from tests.support.processes import Commands, eventually
from worker.kinds import SUBSCRIBED
from worker.sandbox import Knobs, Sandbox

pytestmark = pytest.mark.long

PEOPLE = 12


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(seed=11, knobs=Knobs(hold_back=0.2)) as running:
        yield running


def test_sessions_end_although_the_worker_is_killed(
    commands_engine: Engine, sandbox: Sandbox, commands: Commands
) -> None:
    engine, world = commands_engine, sandbox.world
    commands.settings |= {"REVOKE_SESSIONS": "on", "WORKOS_RATE_SHARE": 1}
    _, port = commands.web()
    worker, _ = commands.start("worker", "--processes", "1"), commands.start("clock")
    eventually(lambda: rows(engine, MirrorState)[0]["backfilled_at"], 60)
    sandbox.add_endpoint(f"http://127.0.0.1:{port}/webhooks/workos", SECRET, SUBSCRIBED)
    org = world.create_organization("Acme")["id"]
    memberships = []
    for number in range(PEOPLE):
        user = world.create_user(f"person{number}@acme.example")["id"]
        memberships.append(world.create_membership(org, user)["id"])
        world.create_session(user, org)
    eventually(lambda: len(rows(engine, workspace_members)) == PEOPLE, 30)

    def active() -> int:
        return sum(session["status"] == "active" for session in world.sessions.values())

    for membership in memberships:
        world.delete_membership(membership)
    eventually(lambda: active() <= PEOPLE - 3, 30)
    for lane in worker.lanes():
        lane.kill()
    worker.kill()
    # As if the claims of the killed worker had expired.
    in_transaction(engine, lambda tx: tx.execute(update(Revocation).values(due_at=db_now_plus(-1))))
    commands.start("worker", "--processes", "1")
    eventually(lambda: not active(), 30)
    eventually(lambda: {row["state"] for row in rows(engine, Revocation)} == {"done"}, 10)
