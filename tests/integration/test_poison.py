"""An event that kills the process that applies it is isolated and failed; no other event spends an attempt."""

import pytest
from sqlalchemy import Engine

from models.tables import Batch, Event
from tests.support import event_row, rows, statuses
from tests.support.inbox import count, let_time_pass, pending
from tests.support.processes import ask, piece
from tests.support.stories import new_users, store, written_once

pytestmark = pytest.mark.long


@pytest.mark.parametrize("size", [20, 120])
def test_an_event_that_kills_its_process_is_isolated_and_failed(db_url: str, engine: Engine, size: int) -> None:
    story = new_users(size)
    poison = story[size // 2]["id"]
    done_at_death: list[int] = []
    with piece("deadly_drain", db_url, poison, 3) as drains:
        assert int(ask(drains, "empty")) == 0
        store(engine, story)
        while pending(engine):
            code = int(ask(drains, "drain"))
            assert code in {0, 137} and len(done_at_death) < 12
            if code == 137:
                done_at_death.append(statuses(engine).get("done", 0))
            let_time_pass(engine)  # the dead drain is detected, and the back-off ends
    assert statuses(engine) == {"done": size - 1, "failed": 1}
    row = event_row(engine, poison)
    assert (row["status"], row["attempts"]) == ("failed", 3)
    assert row["error"] == "WorkerCrashedError: the process ended while it applied this event"
    assert count(engine, Event.attempts > 0) == 1
    assert done_at_death[-2:] == [size - 1] * 2, "the others do not wait for the last attempts"
    assert rows(engine, Batch) == []
    written_once(engine)
