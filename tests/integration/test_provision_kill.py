"""Sign-ups through real processes that are killed with -9, while WorkOS limits and fails calls."""

import random
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from sqlalchemy import Engine, func, select, update

from models.database import in_transaction, read_transaction
from models.tables import Join, JoinState, MirrorState
from models.types import db_now_plus
from tests.support import SECRET, rows
from tests.support.inbox import pending
from tests.support.processes import Commands, eventually
from tests.support.stories import store
from worker.kinds.membership import Membership
from worker.provisioning import SEND_SECONDS
from worker.sandbox import Knobs, Sandbox, World

pytestmark = pytest.mark.long

SIGN_UPS = 84
WRONG = 12
"""People of each kind who must not become members."""
KILLS = 5


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    knobs = Knobs(hold_back=0.2, duplicates=0.1, reordering=0.1, rate_limits=True)
    with Sandbox(seed=11, knobs=knobs) as running:
        yield running


@pytest.fixture
def engine(commands_engine: Engine, commands: Commands) -> Engine:
    commands.settings["AUTO_JOIN"] = "provision"
    return commands_engine


def joined(engine: Engine) -> int:
    with read_transaction(engine) as tx:
        done = select(func.count()).select_from(Join).where(Join.state == JoinState.JOINED)
        return tx.execute(done).scalar_one()


def still_open(engine: Engine) -> int:
    return sum(row["state"] in (JoinState.PENDING, JoinState.UNDO) for row in rows(engine, Join))


def sign_ups(world: World) -> tuple[dict[tuple[str, str], str], set[tuple[str, str]]]:
    """Create all kinds of people in a random order.

    Returns the expected status of each membership at the end, and the memberships that were created by hand.
    """
    dice = random.Random(3)
    org = world.create_organization("Acme", domains=[("acme.example", "verified")])["id"]
    for name in ("One", "Two"):
        world.create_organization(name, domains=[("fought-over.example", "verified")])
    world.create_organization("Pending", domains=[("pending.example", "pending")])
    before: dict[str, Any] = {}
    for number in range(WRONG):
        for kind in ("removed", "inactive"):
            id = world.create_user(f"{kind}{number}@acme.example", email_verified=False)["id"]
            membership = world.create_membership(org, id)["id"]
            (world.delete_membership if kind == "removed" else world.deactivate_membership)(membership)
            before[f"{kind}{number}"] = id
    right = [f"person{number}" for number in range(SIGN_UPS)]
    others = [
        f"{kind}{number}" for number in range(WRONG) for kind in ("unverified", "invited", "else", "fight", "wait")
    ]
    names = [*right, *others, *before]
    dice.shuffle(names)
    expected: dict[tuple[str, str], str] = {}
    hosts = {"else": "elsewhere.example", "fight": "fought-over.example", "wait": "pending.example"}
    for name in names:
        if name in before:
            world.update_user(before[name], email_verified=True)
            if name.startswith("inactive"):
                expected[org, before[name]] = "inactive"
            continue
        host = next((host for kind, host in hosts.items() if name.startswith(kind)), "acme.example")
        id = world.create_user(f"{name}@{host}", email_verified=not name.startswith("unverified"))["id"]
        if name.startswith("invited"):
            world.create_membership(org, id, status="pending")
            expected[org, id] = "pending"
        elif name.startswith("person"):
            expected[org, id] = "active"
    return expected, {(org, id) for id in before.values()}


@pytest.mark.timeout(300)
def test_each_eligible_person_gets_exactly_one_membership(engine: Engine, sandbox: Sandbox, commands: Commands) -> None:
    _, port = commands.web()
    worker, _ = commands.start("worker"), commands.start("clock")
    eventually(lambda: rows(engine, MirrorState)[0]["backfilled_at"], 60)
    sandbox.add_endpoint(f"http://127.0.0.1:{port}/webhooks/workos", SECRET)
    expected, _ = sign_ups(sandbox.world)
    for path, method in (("/user_management/organization_memberships", "POST"), ("/user_management", "GET")):
        for status in (429, 500, 0):
            sandbox.faults.fail(path, method=method, status=status, times=15)
    for _ in range(20):
        sandbox.faults.fail("/user_management", method="POST", status=0, times=1, after_effect=True)
    for number in range(1, KILLS + 1):
        eventually(lambda: joined(engine) >= number * SIGN_UPS // (KILLS + 2), 120)  # noqa: B023 - called now
        for lane in worker.lanes():
            lane.kill()
        worker.kill()
        # As if the lease of the joins in progress had expired.
        in_transaction(engine, lambda tx: tx.execute(update(Join).values(due_at=db_now_plus(-1))))
        worker = commands.start("worker")
    sandbox.deliveries.drain(60)
    eventually(lambda: not pending(engine) and joined(engine) >= SIGN_UPS and not still_open(engine), 120)
    found = [
        ((membership["organization_id"], membership["user_id"]), membership["status"])
        for membership in sandbox.world.memberships.values()
    ]
    assert len(found) == len(expected) and dict(found) == expected
    states = {state: sum(row["state"] == state for row in rows(engine, Join)) for state in JoinState}
    assert states[JoinState.JOINED] == SIGN_UPS
    assert states[JoinState.BLOCKED] == 3 * WRONG, "removed, deactivated, invited"
    assert states[JoinState.UNDONE] == states[JoinState.FAILED] == 0
    eventually(lambda: len([row for row in rows(engine, Membership) if row["status"] == "active"]) >= SIGN_UPS, 30)


def test_a_worker_suspended_after_its_check_creates_nothing_when_it_resumes(
    engine: Engine, sandbox: Sandbox, commands: Commands
) -> None:
    """Only the events API reports the removal, and only provisioning reads that."""
    commands.settings |= {"CATCH_UP_SECONDS": "3600", "TAIL_SECONDS": "3600"}
    worker, _ = commands.start("worker"), commands.start("clock")
    eventually(lambda: rows(engine, MirrorState)[0]["backfilled_at"], 60)
    world = sandbox.world
    org = world.create_organization("Acme", domains=[("acme.example", "verified")])["id"]
    user = world.create_user("ann@acme.example")["id"]
    store(engine, world.events)
    wakes: list[threading.Timer] = []

    def stop(method: str, path: str, query: Mapping[str, str]) -> None:
        # A resync lists memberships too, but not those of one person.
        if method == "GET" and path.endswith("organization_memberships") and "user_id" in query and not wakes:
            lane = worker.lane("provision")
            lane.suspend()
            world.delete_membership(world.create_membership(org, user)["id"])
            wakes.append(threading.Timer(SEND_SECONDS + 1, lane.resume))
            wakes[0].start()

    sandbox.on_request = stop
    eventually(
        lambda: [row for row in rows(engine, Join) if row["state"] not in (JoinState.PENDING, JoinState.UNDO)], 60
    )
    assert [(row["state"], row["reason"]) for row in rows(engine, Join)] == [(JoinState.BLOCKED, "removed")]
    assert "/user_management/organization_memberships: not sent" in worker.output()
    assert sandbox.gate.total("POST") == 0 and not world.memberships
