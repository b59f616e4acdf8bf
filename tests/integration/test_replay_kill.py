"""Events that failed with two kinds of error, a fix, and a replay of each kind; one replay is killed with -9."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, update

from models.database import in_transaction
from models.tables import Change, Event, Run, RunStatus
from tests.support import JSON, made, rows, statuses
from tests.support.processes import Commands, Valkey, environment, eventually
from tests.support.resync import expire_lease
from tests.support.stories import store

pytestmark = pytest.mark.long

NUMBER = 500
SPOILT: dict[str, Any] = {"id": None, "updated_at": "yesterday"}
"""The field that a bug spoils in every second event, and how."""


@pytest.fixture
def db_url(make_database: Callable[[str], str]) -> str:
    """PostgreSQL; replays on both databases are shown in tests/use_cases."""
    return make_database("postgresql")


def run_json(commands: Commands, folder: Path, *arguments: str) -> Any:
    """The JSON that a command prints."""
    done = subprocess.run(
        [sys.executable, "-m", "worker.cli", *arguments, "--json"],
        cwd=folder,
        env=environment(**commands.settings),
        capture_output=True,
        text=True,
        check=False,
    )
    return json.loads(done.stdout)


def run_row(engine: Engine) -> JSON | None:
    return next((row for row in rows(engine, Run) if row["task"] == "replay" and row["status"] == "running"), None)


def half_way(engine: Engine) -> JSON | None:
    """The replay in progress, once it has requeued at least 50 events."""
    row = run_row(engine)
    return row if row and row["done"] >= 50 else None


def test_a_killed_replay_continues_and_a_second_one_fixes_the_rest(
    db_url: str, engine: Engine, valkey: Valkey, commands: Commands, tmp_path: Path
) -> None:
    commands.settings |= {"DATABASE_URL": db_url, "REDIS_URL": valkey.url}
    commands.settings |= {"SWEEP_SECONDS": 0.2, "REPAIR_SECONDS": 0.2, "REPLAY_PER_SECOND": 100}
    commands.start("clock")
    worker = commands.start("worker")
    whole = [made("user.created", event_id=f"event_{n:04}", id=f"user_{n:04}") for n in range(NUMBER)]
    fields = list(SPOILT)
    store(engine, [e | {"data": e["data"] | {fields[n % 2]: SPOILT[fields[n % 2]]}} for n, e in enumerate(whole)])
    eventually(lambda: statuses(engine) == {"failed": NUMBER}, 40)

    kinds = run_json(commands, tmp_path, "events", "failures")
    assert sorted((kind["error"], kind["events"]) for kind in kinds) == [
        ("data.id: is missing", NUMBER // 2),
        ("data.updated_at: is not a time", NUMBER // 2),
    ]
    bodies = {event["id"]: json.dumps(event).encode() for event in whole}

    def fix(tx: Any) -> None:
        for id, body in bodies.items():
            tx.execute(update(Event).where(Event.id == id).values(body=body))

    in_transaction(engine, fix)

    first = commands.start("replay", "--fingerprint", kinds[0]["fingerprint"], "--reason", "fixed in 1.1")
    run = eventually(lambda: half_way(engine), 30)
    assert run is not None
    first.kill()
    for lane in worker.lanes():
        lane.kill()
    worker.kill()
    stopped = run_row(engine)
    assert stopped is not None and 50 <= stopped["done"] < NUMBER // 2, "killed half-way, and its progress is stored"
    expire_lease(engine, run["id"])
    commands.start("worker")
    eventually(lambda: run_row(engine) is None and statuses(engine).get("failed") == NUMBER // 2, 40)
    eventually(lambda: "pending" not in statuses(engine), 40)

    second = run_json(
        commands, tmp_path, "replay", "--fingerprint", kinds[1]["fingerprint"], "--reason", "fixed in 1.1"
    )
    assert (second["status"], second["done"], second["total"]) == ("done", NUMBER // 2, NUMBER // 2)
    eventually(lambda: statuses(engine) == {"done": NUMBER}, 40)
    ended = [row for row in rows(engine, Run) if row["task"] == "replay"]
    assert {(row["status"], row["done"], row["reason"]) for row in ended} == {
        (RunStatus.DONE, NUMBER // 2, "fixed in 1.1")
    }
    changed = Counter(row["cause_id"] for row in rows(engine, Change))
    assert changed == dict.fromkeys(bodies, 1), "each applied once"
    assert {row["replays"] for row in rows(engine, Event)} == {1}
