"""A database that release 1.0.0 filled is upgraded with its data, and this release finishes the work it held."""

import base64
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from sqlalchemy import JSON as JSON_TYPE
from sqlalchemy import Boolean, DateTime, Engine, MetaData, Table, delete, insert, select, text

from models.database import read_transaction, write_transaction
from models.migrate import upgrade
from models.revisions import FORMER_VERSIONS, VERSIONS, current_revision, newest_revision, why_unusable
from models.tables import (
    Audit,
    Batch,
    Change,
    Drift,
    Event,
    Join,
    Listing,
    Run,
    RunStatus,
    Task,
    UnblockedMembership,
    WorkspaceSettings,
)
from tests import support
from tests.support import JSON, NOON, apply_all, differences, joins, made, mirrored, rows, statuses
from tests.support.actors import by
from tests.support.auto_join import outdated_states
from tests.support.catalog import drop_schema
from tests.support.histories import broken_chains
from tests.support.inbox import count, let_time_pass
from tests.support.resync import deliver
from worker.kinds.organization import Organization
from worker.mirror import auto_join_policy
from worker.queue.doorbell import Doorbell
from worker.repair.work import Repair
from worker.settings import Settings

pytestmark = pytest.mark.long

RELEASE_1_0_0: JSON = json.loads((Path(support.__file__).parent / "release_1_0_0" / "data.json").read_text())
"""`tables`: the rows of a database that release 1.0.0 filled from the sandbox. `events`: what WorkOS sent afterwards.
`truth`: what WorkOS then lists."""
STORED: dict[str, list[JSON]] = RELEASE_1_0_0["tables"]


ANN, ACME = "user_01M8H588KADXN185Z4PF0QDRP1", "org_01M8H588K9DXN12QG2VVTFHH4A"
LABS = "org_01M8H588K9DXN13BTJABKPN099"
OLD_DECISIONS: list[JSON] = [
    {"before": None, "after": {"state": "blocked", "why": "a test account"}, "cause_id": "bob"},
    {
        "before": {"state": "blocked", "reasons": ["by bob: a test account"]},
        "after": {"state": "lifted", "why": "it is not"},
        "cause_id": "ann",
    },
]
"""The changes that release 1.0.0 recorded when one operator blocked Ann in Acme and another unblocked her."""

JOINED = "SELECT domain, organization_id FROM auto_join_domains"


@pytest.fixture
def filled(engine: Engine) -> Engine:
    """A database with the rows of release 1.0.0, still at its revision."""
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
        about = {"kind": "join", "object_id": ANN, "organization_id": ACME, "cause": "operator"}
        for decision in OLD_DECISIONS:
            tx.execute(insert(metadata.tables["changes"]).values(about | decision))
        tx.execute(insert(metadata.tables["lifted_blocks"]).values(membership_id="om_1", who="ann", why="it is not"))
        tx.execute(text("ALTER TABLE workos_sync_version RENAME TO alembic_version"))
    return engine


@pytest.fixture
def upgraded(filled: Engine) -> Engine:
    """The same database, migrated to this release."""
    upgrade(filled)
    return filled


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


def test_the_version_table_is_taken_over_and_the_former_one_kept_up_to_date(filled: Engine) -> None:
    assert current_revision(filled) == "0010" and why_unusable(filled) == (
        "the database is not migrated; run: workos-sync migrate"
    )
    for _ in range(2):
        upgrade(filled)
        with read_transaction(filled) as tx:
            found = [tx.execute(select(table)).scalars().all() for table in (VERSIONS, FORMER_VERSIONS)]
        assert found == [[newest_revision()]] * 2  # processes of 1.0.0 read the former one during a deploy
    assert why_unusable(filled) is None


def test_upgrade_keeps_every_row(upgraded: Engine) -> None:
    kept = {kind: {row["id"] for row in found} for kind, found in mirrored(upgraded).items()}
    for kind, ids in kept.items():
        assert ids == {row["id"] for row in STORED.get(f"{kind}s", [])}, kind
    assert {row["id"] for row in rows(upgraded, Event)} == {row["id"] for row in STORED["events"]}
    assert {row["id"] for row in rows(upgraded, Run)} == {row["id"] for row in STORED["runs"]}
    assert [row["state"] for row in rows(upgraded, Join)] == [row["state"] for row in STORED["joins"]]


def test_stored_values_keep_their_version_if_a_later_payload_omits_them(filled: Engine) -> None:
    with write_transaction(filled) as tx:
        tx.execute(text("UPDATE organizations SET external_id = 'key' WHERE id = :id"), {"id": LABS})
    upgrade(filled)
    event = made("organization.updated", 9_999_999, event_id="event_late", id=LABS)
    del event["data"]["external_id"]
    deliver(filled, [event])
    [row] = [row for row in rows(filled, Organization) if row["id"] == LABS]
    assert (row["external_id"], row["name"]) == ("key", event["data"]["name"])


def test_pending_work_is_applied_after_upgrade(upgraded: Engine) -> None:
    waiting = [row["id"] for row in rows(upgraded, Event) if row["status"] == "pending"]
    with write_transaction(upgraded) as tx:  # one half is left over, one belongs to a drain that died
        tx.execute(insert(Batch).values(id="left", event_ids=waiting[::2]))
        tx.execute(insert(Batch).values(id="orphan", event_ids=waiting[1::2], started_at=NOON))
    let_time_pass(upgraded)
    deliver(upgraded, RELEASE_1_0_0["events"])
    assert statuses(upgraded) == {"done": len(STORED["events"]) - 1 + len(RELEASE_1_0_0["events"]), "failed": 1}
    # Release 1.0.0 ran with AUTO_JOIN_LEGACY_VERIFIED=false: auto-join is off in the workspaces with such domains.
    off = ("legacy.example", "old.example", "new.example")
    different = differences(upgraded, RELEASE_1_0_0["truth"])
    assert len(different) == len(off) and all(any(name in line for name in off) for line in different)
    assert outdated_states(upgraded) == []


def test_open_runs_finish_after_upgrade(upgraded: Engine, redis: Redis) -> None:
    Repair(upgraded, None, Settings(_env_file=None), Doorbell(redis, "drain")).work_on_all()
    apply_all(upgraded)
    ended = {row["task"]: row["status"] for row in rows(upgraded, Run) if row["task"] in (Task.REPLAY, Task.RETENTION)}
    assert ended == {Task.REPLAY: RunStatus.DONE, Task.RETENTION: RunStatus.DONE}
    assert count(upgraded, Event.replays == 1) == next(r["total"] for r in rows(upgraded, Run) if r["task"] == "replay")


def broken(engine: Engine) -> list[str]:
    """Broken chains of changes, without the kinds that have new columns in this release."""
    changed = ("organization", "user", "membership", "role")
    return broken_chains([row for row in rows(engine, Change) if row["kind"] not in changed])


def test_ignored_legacy_domains_are_switched_off(filled: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    with read_transaction(filled) as tx:
        joined = {tuple(row) for row in tx.execute(text(JOINED))}
    upgrade(filled)
    off = {row["organization_id"]: row for row in rows(filled, WorkspaceSettings) if row["who"] == "settings"}
    names = {row["id"]: row["name"] for row in rows(filled, Organization)}
    assert {names[id] for id in off} == {"Legacy Ltd", "Both Ltd", "Hooli"}
    assert all(row["auto_join"] is False and "AUTO_JOIN_LEGACY_VERIFIED" in row["why"] for row in off.values())
    assert "auto-join is now off for 3 workspaces" in capsys.readouterr().out
    assert joins(filled) < joined and outdated_states(filled) == []
    noted = [row for row in rows(filled, Change) if row["cause_id"] == "AUTO_JOIN_LEGACY_VERIFIED"]
    settings = {row["object_id"]: row for row in noted if row["kind"] == "workspace_settings"}
    assert settings.keys() == off.keys() and {row["cause"] for row in noted} == {"settings"}
    for id, row in settings.items():
        assert row["before"] == {"auto_join": True, "default_role": "member", "why": None}
        assert row["after"] == {"auto_join": False, "default_role": "member", "why": off[id]["why"]}
    assert {row["after"]["auto_join"] for row in noted if row["kind"] == "domain"} == {"verified"}
    assert broken(filled) == []


def test_counted_legacy_domains_stay_on(filled: Engine) -> None:
    with write_transaction(filled) as tx:
        tx.execute(text("UPDATE mirror SET legacy_verified = TRUE"))
        joined = {tuple(row) for row in tx.execute(text(JOINED))}
    upgrade(filled)
    assert joins(filled) == joined and "legacy.example" in {domain for domain, _ in joined}
    assert [row["organization_id"] for row in rows(filled, WorkspaceSettings)] == [LABS]


def test_legacy_domain_of_unknown_workspace_is_switched_off(filled: Engine) -> None:
    with write_transaction(filled) as tx:
        tx.execute(
            text(
                "INSERT INTO domains (id, organization_id, domain, normalized, verification, revision)"
                " VALUES ('org_domain_early', 'org_early', 'early.example', 'early.example', 'legacy_verified', 1)"
            )
        )
    upgrade(filled)
    deliver(filled, [made("organization.created", event_id="event_early", id="org_early", name="Early", domains=[])])
    assert "early.example" not in {domain for domain, _ in joins(filled)}
    assert broken(filled) == []


def test_stored_values_are_converted(upgraded: Engine) -> None:
    assert {row["finding"] for row in rows(upgraded, Drift)} >= {"invalid", "missing"}
    assert "odd" not in {row["finding"] for row in rows(upgraded, Drift)}
    assert [row["name"] for row in rows(upgraded, Listing) if row["invalid"]] == ["users"]
    assert [(row["membership_id"], row["why"]) for row in rows(upgraded, UnblockedMembership)] == [
        ("om_1", "it is not")
    ]
    blocked = {"state": "blocked", "reasons": ["by bob: a test account"], "why": "a test account"}
    unblocked = {"state": "unblocked", "reasons": ["by bob: a test account"], "why": "it is not"}
    noted = [(row["before"], row["after"]) for row in rows(upgraded, Change) if row["kind"] == "join"]
    assert noted == [(None, blocked), (blocked, unblocked)]
    assert rows(upgraded, Audit) == [], "it begins with this release; earlier decisions stay where they are"
    auto_join_policy.block(upgraded, ACME, ANN, by("bob", "it is"))
    assert [(row["who"], row["action"]) for row in rows(upgraded, Audit)] == [("bob", "block")]
    assert broken(upgraded) == []
