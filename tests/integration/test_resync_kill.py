"""kill -9 of the real worker in the middle of a resync: another goes on where it stopped."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, func, select, update

from models.database import reading, write
from models.tables import Kind, Listing, Mirror, Run
from tests.integration.processes import Commands, Valkey, eventually
from tests.sandbox import Sandbox, populate
from tests.support import differences, rows
from tests.use_cases.resyncs import CLIENT_ID, expire_lease, live

ORGANIZATIONS = 60


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(seed=5) as made:
        populate(made.world, organizations=ORGANIZATIONS, members=2)
        made.knobs.latency = 0.05
        yield made


def listed(engine: Engine) -> int:
    with reading(engine) as tx:
        return tx.execute(select(func.count()).where(Listing.state != "open")).scalar_one()


def test_kill_9_of_the_worker_in_mid_resync(
    db_url: str, engine: Engine, valkey: Valkey, commands: Commands, sandbox: Sandbox
) -> None:
    commands.settings |= {
        "DATABASE_URL": db_url,
        "REDIS_URL": valkey.url,
        "WORKOS_API_KEY": sandbox.api_key,
        "WORKOS_CLIENT_ID": CLIENT_ID,
        "WORKOS_BASE_URL": sandbox.base_url,
        "WORKOS_RATE_SHARE": 1,
        "REPAIR_SECONDS": 0.2,
    }
    commands.start("clock")
    for kills in range(1, 3):
        worker = commands.start("worker")
        eventually(lambda so_far=kills * 12: listed(engine) >= so_far, 40)  # type: ignore[misc]
        repairing = [lane for lane in worker.lanes() if lane.cmdline()[-1] == "repair"]
        assert repairing
        for lane in worker.lanes():
            lane.kill()
        worker.kill()
        [run_id] = [row["id"] for row in rows(engine, Run) if row["task"] == "resync"]
        assert listed(engine) < ORGANIZATIONS
        expire_lease(engine, run_id)
    commands.start("worker")
    eventually(lambda: [row for row in rows(engine, Run) if row["task"] == "resync" and row["status"] == "done"], 40)
    assert differences(engine, sandbox.world.truth()) == []
    assert len(live(engine)[Kind.ORGANIZATION]) == ORGANIZATIONS
    memberships = sandbox.calls["GET", "/user_management/organization_memberships"]
    assert ORGANIZATIONS <= memberships <= ORGANIZATIONS + 2 * 8  # a page for each call in flight at each death
    assert rows(engine, Mirror)[0]["last_resync_at"] is not None
    assert write(engine, lambda tx: tx.execute(update(Run).where(Run.fence > 3).values(error=None)).rowcount) == 0
