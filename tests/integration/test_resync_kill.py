"""A resync whose worker is killed with -9, and a resync beside a busy webhook endpoint."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from statistics import quantiles

import pytest
from redis import Redis
from sqlalchemy import Engine, func, select

from models.database import open_engine, read_transaction
from models.tables import Listing, MirrorState, Run
from tests.support import differences, rows
from tests.support.processes import Commands, Valkey, eventually
from tests.support.resync import client_of, expire_lease, live, resync, settings_of
from webhooks.receive import COMMIT_SECONDS
from worker.bootstrap import MAX_CONNECTIONS
from worker.inbox.store import ReceivedEvent, accept_webhooks
from worker.repair.resync.resync import CONCURRENT_CALLS
from worker.sandbox import Sandbox, populate

pytestmark = pytest.mark.long

ORGANIZATIONS = 60
MEMBERSHIPS = "/user_management/organization_memberships"


@pytest.fixture
def db_url(make_database: Callable[[str], str]) -> str:
    """PostgreSQL: a dead worker may leave locks there. tests/use_cases covers both databases."""
    return make_database("postgresql")


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(seed=5) as made:
        populate(made.world, organizations=ORGANIZATIONS, members=2)
        made.knobs.latency = 0.05
        yield made


def listed(engine: Engine) -> int:
    """Return how many workspaces' members are listed."""
    ended = select(func.count()).where(Listing.name == "memberships", Listing.state != "open")
    with read_transaction(engine) as tx:
        return tx.execute(ended).scalar_one()


def test_kill_9_of_the_worker_in_mid_resync(
    db_url: str, engine: Engine, valkey: Valkey, commands: Commands, sandbox: Sandbox
) -> None:
    ours = {"DATABASE_URL": db_url, "REDIS_URL": valkey.url, "WORKOS_RATE_SHARE": 1, "REPAIR_SECONDS": 0.2}
    commands.settings |= settings_of(sandbox) | ours
    commands.start("clock")
    worker = commands.start("worker")
    eventually(lambda: listed(engine) >= 12, 40)
    for lane in worker.lanes():
        lane.kill()
    worker.kill()
    [run_id] = [row["id"] for row in rows(engine, Run) if row["task"] == "resync"]
    assert 12 <= (finished := listed(engine)) < ORGANIZATIONS
    before = sandbox.calls["GET", MEMBERSHIPS]
    expire_lease(engine, run_id)
    commands.start("worker")
    eventually(lambda: [row for row in rows(engine, Run) if row["task"] == "resync" and row["status"] == "done"], 40)
    assert differences(engine, sandbox.world.truth()) == []
    assert len(live(engine)["organization"]) == ORGANIZATIONS
    again = sandbox.calls["GET", MEMBERSHIPS] - before  # and those that were on their way when the worker was killed
    assert ORGANIZATIONS - finished <= again <= ORGANIZATIONS - finished + CONCURRENT_CALLS
    assert rows(engine, MirrorState)[0]["last_resync_at"] is not None


@pytest.mark.alone
def test_deliveries_to_an_sqlite_mirror_do_not_wait_for_a_resync(
    make_database: Callable[[str], str], redis_url: str
) -> None:
    engine = open_engine(make_database("sqlite"), pool_size=MAX_CONNECTIONS)
    with (
        Sandbox(seed=6) as sandbox,
        Redis.from_url(redis_url) as redis,
        closing(client_of(sandbox, redis)) as workos,
    ):
        populate(sandbox.world, organizations=60, members=40)
        over = threading.Event()
        waits: list[float] = []

        def deliver() -> None:
            for number in itertools.count():
                began = time.monotonic()
                accept_webhooks(engine, [ReceivedEvent(f"event_{number}", "user.created", b"{}", 0)])
                waits.append(time.monotonic() - began)
                if over.wait(0.005):
                    return

        endpoint = threading.Thread(target=deliver)
        endpoint.start()
        resync(engine, workos)
        over.set()
        endpoint.join()
    engine.dispose()
    # The machine may pause once, but a delivery waits for one page at most.
    assert len(waits) > 20 and quantiles(waits, n=20)[-1] < 0.5 and max(waits) < COMMIT_SECONDS, sorted(waits)[-5:]
