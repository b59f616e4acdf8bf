"""Listings show a stored value that this release does not know; nothing writes one."""

import json

import pytest
from sqlalchemy import Engine, select, text, update
from sqlalchemy.exc import StatementError

from models.database import in_transaction, read_transaction
from models.tables import Event, EventStatus, Run, Task
from tests.support.stories import new_users, store
from worker.reports import listings
from worker.runs import create


def test_unknown_value_is_listed_as_stored(both_engines: Engine) -> None:
    store(both_engines, new_users(2))
    in_transaction(both_engines, create, Task.CATCH_UP, "ann")
    in_transaction(both_engines, lambda tx: tx.execute(text("UPDATE events SET status = 'parked', outcome = 'merged'")))
    in_transaction(both_engines, lambda tx: tx.execute(text("UPDATE runs SET task = 'reindex', status = 'paused'")))
    shown = listings.list_events(both_engines)
    assert [(row["status"], row["outcome"]) for row in shown] == [("parked", "merged")] * 2
    (run,) = listings.list_runs(both_engines)
    assert json.loads(json.dumps([run["task"], run["status"]])) == ["reindex", "paused"]
    assert listings.list_events(both_engines, status="parked") == []


def test_unknown_value_cannot_be_written(both_engines: Engine) -> None:
    store(both_engines, new_users(1))
    with pytest.raises(StatementError, match="'parked' is not a valid EventStatus"):
        in_transaction(both_engines, lambda tx: tx.execute(update(Event).values(status="parked")))


def test_known_value_is_read_as_enum(both_engines: Engine) -> None:
    store(both_engines, new_users(1))
    in_transaction(both_engines, create, Task.CATCH_UP, "ann")
    with read_transaction(both_engines) as tx:
        assert tx.execute(select(Event.status)).scalar_one() is EventStatus.PENDING
        assert tx.execute(select(Run.task)).scalar_one() is Task.CATCH_UP
