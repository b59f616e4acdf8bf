"""A database that release 1.0.0 filled is upgraded with its data, and this release finishes the work it held."""

import base64
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from sqlalchemy import JSON as JSON_TYPE
from sqlalchemy import Boolean, DateTime, Engine, MetaData, Table, delete, insert

from models.database import write_transaction
from models.migrate import upgrade
from models.tables import Batch, Event, Join, Run, RunStatus, Task
from tests import support
from tests.support import JSON, NOON, apply_all, differences, mirrored, rows, statuses
from tests.support.catalog import drop_schema
from tests.support.inbox import count, let_time_pass
from tests.support.resync import deliver
from worker.queue.doorbell import Doorbell
from worker.repair.work import Repair
from worker.settings import Settings

RELEASE_1_0_0: JSON = json.loads((Path(support.__file__).parent / "release_1_0_0" / "data.json").read_text())
"""`tables`: the rows of a database that release 1.0.0 filled from the sandbox. `events`: what WorkOS sent afterwards.
`truth`: what WorkOS then lists."""
STORED: dict[str, list[JSON]] = RELEASE_1_0_0["tables"]


@pytest.fixture
def upgraded(engine: Engine) -> Engine:
    """A database with the rows of release 1.0.0, migrated to this release."""
    drop_schema(engine)
    upgrade(engine, "0010")
    metadata = MetaData()
    with write_transaction(engine) as tx:
        metadata.reflect(tx)
        tx.execute(delete(metadata.tables["mirror"]))
        for name, stored in STORED.items():
            table = metadata.tables[name]
            for row in stored:
                tx.execute(insert(table).values({column: _value(table, column, row[column]) for column in row}))
        if engine.dialect.name == "postgresql":
            tx.exec_driver_sql("SELECT setval('changes_id_seq', (SELECT max(id) FROM changes))")
    upgrade(engine)
    return engine


def _value(table: Table, column: str, value: Any) -> Any:
    """Return a value as the column of either database takes it; the dump shows values as SQLite stores them."""
    kind = table.c[column].type
    if isinstance(value, dict):
        return base64.b64decode(value["bytes"])
    if value is None or not isinstance(kind, JSON_TYPE | DateTime | Boolean):
        return value
    if isinstance(kind, JSON_TYPE):
        return json.loads(value)
    return bool(value) if isinstance(kind, Boolean) else datetime.fromisoformat(value)


def test_every_row_is_kept(upgraded: Engine) -> None:
    kept = {kind.value: {row["id"] for row in found} for kind, found in mirrored(upgraded).items()}
    for kind, ids in kept.items():
        assert ids == {row["id"] for row in STORED[f"{kind}s"]}, kind
    assert {row["id"] for row in rows(upgraded, Event)} == {row["id"] for row in STORED["events"]}
    assert {row["id"] for row in rows(upgraded, Run)} == {row["id"] for row in STORED["runs"]}
    assert [row["state"] for row in rows(upgraded, Join)] == [row["state"] for row in STORED["joins"]]


def test_pending_events_and_half_done_batches_are_applied_and_the_mirror_converges(upgraded: Engine) -> None:
    waiting = [row["id"] for row in rows(upgraded, Event) if row["status"] == "pending"]
    with write_transaction(upgraded) as tx:  # one half is left over, one belongs to a drain that died
        tx.execute(insert(Batch).values(id="left", event_ids=waiting[::2]))
        tx.execute(insert(Batch).values(id="orphan", event_ids=waiting[1::2], started_at=NOON))
    let_time_pass(upgraded)
    deliver(upgraded, RELEASE_1_0_0["events"])
    assert statuses(upgraded) == {"done": len(STORED["events"]) - 1 + len(RELEASE_1_0_0["events"]), "failed": 1}
    # Release 1.0.0 ran with AUTO_JOIN_LEGACY_VERIFIED=false: these domains did not join anyone, and still do not.
    legacy = [
        line
        for line in differences(upgraded, RELEASE_1_0_0["truth"])
        if "legacy.example" in line or "old.example" in line
    ]
    assert differences(upgraded, RELEASE_1_0_0["truth"]) == legacy


def test_an_open_replay_and_an_open_retention_are_finished(upgraded: Engine, redis: Redis) -> None:
    Repair(upgraded, None, Settings(_env_file=None), Doorbell(redis, "drain")).all()
    apply_all(upgraded)
    ended = {row["task"]: row["status"] for row in rows(upgraded, Run) if row["task"] in (Task.REPLAY, Task.RETENTION)}
    assert ended == {Task.REPLAY: RunStatus.DONE, Task.RETENTION: RunStatus.DONE}
    assert count(upgraded, Event.replays == 1) == next(r["total"] for r in rows(upgraded, Run) if r["task"] == "replay")
