"""Two processes post the same events at the same time: each event gets one row and is applied once."""

import json
from pathlib import Path

import pytest
from sqlalchemy import Engine, func, select

from models.database import read_transaction
from models.tables import Change, Event
from tests.support import sign, statuses
from tests.support.inbox import pending
from tests.support.processes import Commands, Valkey, ask, eventually, piece
from tests.support.stories import encoded, new_users, written_once

pytestmark = pytest.mark.long


def test_events_posted_by_two_processes_at_once_are_applied_once(
    db_url: str, engine: Engine, valkey: Valkey, commands: Commands, tmp_path: Path
) -> None:
    commands.settings |= {"DATABASE_URL": db_url, "REDIS_URL": valkey.url}
    deliveries = tmp_path / "deliveries.json"
    deliveries.write_text(json.dumps([[body.decode(), sign(body)] for body in map(encoded, new_users(1000))]))
    web, port = commands.web()
    with piece("poster", port, deliveries, 2) as one, piece("poster", port, deliveries, 2) as other:
        for poster in (one, other):
            assert poster.stdout is not None and poster.stdout.readline() == "ready\n"
        for poster in (one, other):
            ask(poster, "go")
        assert [poster.wait(60) for poster in (one, other)] == [0, 0]
    worker = commands.start("worker", "--processes", "1")
    eventually(lambda: pending(engine) == 0, 20)
    assert statuses(engine) == {"done": 1000}
    with read_transaction(engine) as tx:
        assert tx.execute(select(func.sum(Event.deliveries))).scalar_one() == 2000
        assert tx.execute(select(func.count()).select_from(Change)).scalar_one() == 1000
    written_once(engine)
    web.stop()
    worker.stop()
