"""Retention periods, and the erasure of deleted users."""

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from click.testing import Result
from redis import Redis
from sqlalchemy import Engine, insert, update

from models.database import in_transaction
from models.tables import Change, Drift, Event, EventStatus, Run, RunStatus, Seen, Task
from models.types import db_now_plus
from tests.support import JSON, apply_all, made, mirrored, outcomes, rows, sample
from tests.support.actors import by
from tests.support.resync import CLIENT_ID, Clock, client_of, deliver, resync
from tests.support.stories import store
from worker.inbox.dismissal import dismiss
from worker.kinds.user import User
from worker.mirror import auto_join_policy
from worker.mirror.erasure import forget
from worker.mirror.retention import BATCH, Periods, retain
from worker.queue.doorbell import DRAIN, Doorbell
from worker.repair.catch_up import catch_up
from worker.repair.environment import bind
from worker.repair.work import Repair
from worker.runs import create
from worker.sandbox import Sandbox
from worker.settings import Settings, load_settings
from worker.workos_api.client import WorkOSClient

DAY = 24 * 3600.0
USER = sample("user.deleted")["data"]["id"]
EMAIL = sample("user.deleted")["data"]["email"]
PERSONAL = ("email", "first_name", "last_name")


def age(engine: Engine, table: type[Any], days: float, *columns: str) -> None:
    """Set `columns` of all rows to `days` days ago."""
    in_transaction(
        engine, lambda tx: tx.execute(update(table).values({name: db_now_plus(-days * DAY) for name in columns}))
    )


def age_events(engine: Engine, days: float) -> None:
    age(engine, Event, days, "received_at", "last_delivered_at", "processed_at")


def bodies(engine: Engine) -> dict[str, bytes | None]:
    return {row["id"]: row["body"] for row in rows(engine, Event)}


def user_row(engine: Engine, id: str = USER) -> JSON:
    return next(row for row in rows(engine, User) if row["id"] == id)


def personal(engine: Engine, *words: str) -> list[str]:
    """The tables that still contain any of `words`."""
    tables = (Event, User, Change, Drift)
    stored = {table.__tablename__: [str(row) for row in rows(engine, table)] for table in tables}
    return [name for name, found in stored.items() for row in found if any(word in row for word in words)]


# Retention


def test_payloads_expire_after_30_days_and_rows_after_100(engine: Engine) -> None:
    events = [made("user.created"), made("user.updated", 1)]
    failed = made("user.updated", 2, id=None)
    deliver(engine, [*events, failed])
    age_events(engine, 29.9)
    retain(engine, Periods())
    assert None not in bodies(engine).values()

    age_events(engine, 30.1)
    dropped = retain(engine, Periods())
    assert dropped["payloads"] == 2
    kept = bodies(engine)
    assert [kept[event["id"]] for event in events] == [None, None]
    assert json.loads(kept[failed["id"]] or b"")["id"] == failed["id"]

    # Known by id they stay, so that nothing that comes again is applied again.
    before = rows(engine, Change)
    age_events(engine, 99.9)
    retain(engine, Periods())
    assert len(bodies(engine)) == 3
    assert rows(engine, Change) == before

    age_events(engine, 100.1)
    assert retain(engine, Periods())["events"] == 2
    assert set(bodies(engine)) == {failed["id"]}
    assert user_row(engine)["email"] == sample("user.updated")["data"]["email"]


def test_dismissed_events_expire_like_processed_ones(engine: Engine) -> None:
    deliver(engine, [made("user.updated", id=None)])
    [failed] = bodies(engine)
    age_events(engine, 30.1)
    assert retain(engine, Periods())["payloads"] == 0
    assert dismiss(engine, [failed], by("ann", "a test")) == 1
    assert retain(engine, Periods())["payloads"] == 1
    age_events(engine, 100.1)
    assert retain(engine, Periods())["events"] == 1


def test_pending_event_keeps_payload(engine: Engine) -> None:
    store(engine, [made("user.created")])
    age(engine, Event, 400, "received_at", "last_delivered_at")
    retain(engine, Periods())
    assert None not in bodies(engine).values() and len(bodies(engine)) == 1
    apply_all(engine)
    assert user_row(engine)["email"]


def test_changes_and_reports_expire_after_a_year(engine: Engine) -> None:
    deliver(engine, [made("organization.created"), made("user.created")])
    finished = {"task": Task.RESYNC, "requested_by": "x"}

    def put(tx: Any) -> None:
        tx.execute(insert(Run), [{"id": id, "status": "done", **finished} for id in ("old", "new")])
        tx.execute(insert(Run).values(id="open", **finished))
        tx.execute(update(Run).where(Run.id == "old").values(finished_at=db_now_plus(-366 * DAY)))
        tx.execute(update(Run).where(Run.id == "new").values(finished_at=db_now_plus(-364 * DAY)))
        drift = {"kind": "user", "finding": "missing", "action": "repaired"}
        objects = [
            {"run_id": run, "object_id": f"user_{n}", **drift} for run in ("old", "new") for n in range(BATCH + 1)
        ]
        tx.execute(insert(Drift), objects)
        tx.execute(insert(Seen).values(run_id="old", kind="user", object_id="user_1"))

    in_transaction(engine, put)
    age(engine, Change, 364, "at")
    assert retain(engine, Periods())["changes"] == 0
    assert {row["id"] for row in rows(engine, Run)} == {"new", "open"}
    assert {row["run_id"] for row in rows(engine, Drift)} == {"new"} and not rows(engine, Seen)
    age(engine, Change, 366, "at")
    assert retain(engine, Periods())["changes"] == 2


def test_the_last_decision_about_a_person_is_kept(engine: Engine) -> None:
    deliver(engine, [made("organization.created"), made("user.created")])
    organization_id = sample("organization.created")["data"]["id"]
    person = (engine, organization_id, USER)
    auto_join_policy.block(*person, by("ann", "asked for"))
    auto_join_policy.unblock(*person, by("ann", "a mistake"))
    age(engine, Change, 366, "at")
    assert retain(engine, Periods())["changes"] == 3 and retain(engine, Periods())["changes"] == 0
    [last] = rows(engine, Change)
    auto_join_policy.block(*person, by("ann", "after all"))
    assert rows(engine, Change)[-1]["before"] == last["after"]
    age(engine, Change, 366, "at")
    assert retain(engine, Periods())["changes"] == 1
    assert [row["after"]["why"] for row in rows(engine, Change)] == ["after all"]


def test_tombstones_are_kept(engine: Engine) -> None:
    deleted = [made(f"{kind}.deleted") for kind in ("organization", "user", "organization_membership")]
    deliver(engine, deleted)
    for table in (Event, Change, User):
        columns = {Event: ("last_delivered_at", "processed_at"), Change: ("at",), User: ("touched_at",)}[table]
        age(engine, table, 5000, *columns)
    retain(engine, Periods())
    assert not rows(engine, Event)
    late = [made(f"{kind}.updated", 10_000) for kind in ("organization", "user", "organization_membership")]
    deliver(engine, late)
    assert outcomes(engine, *late) == ["tombstoned"] * 3
    assert all(row["deleted_by"] == "event" for found in mirrored(engine).values() for row in found)


@pytest.mark.long
def test_retention_stops_between_batches(one_engine: Engine) -> None:
    store(one_engine, (made("role.updated") for _ in range(2 * BATCH + 10)))
    apply_all(one_engine)
    age_events(one_engine, 31)
    asked: list[int] = []

    def after_one() -> bool:
        asked.append(sum(body is None for body in bodies(one_engine).values()))
        return len(asked) > 1

    assert retain(one_engine, Periods(), after_one)["payloads"] == BATCH
    assert asked[:2] == [0, BATCH]
    assert retain(one_engine, Periods())["payloads"] == BATCH + 10


def test_stopped_retention_resumes(one_engine: Engine, redis: Redis) -> None:
    store(one_engine, [made("role.updated")])
    apply_all(one_engine)
    age_events(one_engine, 31)
    in_transaction(one_engine, create, Task.RETENTION, "clock")
    chosen, bell, answers = Settings(_env_file=None), Doorbell(redis, DRAIN), iter([False])
    Repair(one_engine, None, chosen, bell, lambda: next(answers, True)).work_on_all()
    assert [run["status"] for run in rows(one_engine, Run)] == [RunStatus.RUNNING]
    Repair(one_engine, None, chosen, bell).work_on_all()
    assert [run["status"] for run in rows(one_engine, Run)] == [RunStatus.DONE]
    assert set(bodies(one_engine).values()) == {None}


def test_keep_events_days_has_a_minimum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEEP_EVENTS_DAYS", "99")
    with pytest.raises(Exception, match="KEEP_EVENTS_DAYS"):
        load_settings()


# Erasure


@pytest.fixture
def gone(engine: Engine) -> Engine:
    """A mirror with a renamed, then deleted user, a failed event of theirs, and another user."""
    events = [
        made("user.created"),
        made("user.updated", 1, email="married@acme.example"),
        made("user.updated", 2, updated_at=None),
        made("user.deleted", 3, email="married@acme.example"),
        made("user.created", 0, id="user_neighbour", email="neighbour@acme.example"),
        made("user.updated", 1, id="user_neighbour", updated_at="odd", email="neighbour@acme.example"),
    ]
    deliver(engine, events)
    drift = {"kind": "user", "object_id": USER, "finding": "stale", "action": "repaired"}
    fields = {"email": [EMAIL, "married@acme.example"]}
    in_transaction(engine, lambda tx: tx.execute(insert(Drift).values(run_id="r", fields=fields, **drift)))
    assert set(personal(engine, EMAIL, "married@acme.example")) == {"events", "users", "changes", "drift"}
    return engine


def the_neighbour_is_left_alone(engine: Engine) -> bool:
    return len(personal(engine, "neighbour@acme.example")) == 4  # two events, the user, the change


def test_deleted_user_is_erased_after_30_days(gone: Engine) -> None:
    age(gone, User, 29.9, "touched_at")
    assert retain(gone, Periods())["persons"] == 0
    age(gone, User, 30.1, "touched_at")
    changes = len(rows(gone, Change))
    assert retain(gone, Periods())["persons"] == 1
    assert personal(gone, EMAIL, "married@acme.example") == []
    assert the_neighbour_is_left_alone(gone)
    row = user_row(gone)
    assert [row[name] for name in PERSONAL] == [None, None, None]
    assert (row["deleted_by"], row["erased"]) == ("event", True)
    recorded = rows(gone, Change)[changes:]
    assert [(c["object_id"], c["cause"], c["cause_id"]) for c in recorded] == [(USER, "settings", "ERASE_AFTER_DAYS")]
    age(gone, User, 60, "touched_at")
    assert retain(gone, Periods())["persons"] == 0


@pytest.mark.parametrize("days", [0, 7])
def test_erase_after_days_is_configurable(gone: Engine, days: int) -> None:
    age(gone, User, days + 0.1, "touched_at")
    assert retain(gone, Periods(persons=timedelta(days=days)))["persons"] == 1


def test_late_events_restore_nothing(gone: Engine) -> None:
    forget(gone, USER, by("alice"))
    late = [
        made("user.deleted", 5, email="again@acme.example"),
        made("user.deleted", 0, email="again@acme.example"),
        made("user.updated", 9, email="again@acme.example"),
        made("user.created", email="again@acme.example"),
    ]
    deliver(gone, late)
    assert outcomes(gone, *late) == ["tombstoned"] * 4
    row = user_row(gone)
    assert [row[name] for name in PERSONAL] == [None, None, None]
    assert personal(gone, "again@acme.example") == []
    assert the_neighbour_is_left_alone(gone)


def test_catch_up_restores_nothing(engine: Engine, redis: Redis) -> None:
    clock = Clock()
    with Sandbox(seed=7, clock=clock) as sandbox:
        workos = client_of(sandbox, redis)
        bind(engine, workos, Settings(_env_file=None, workos_api_key="k", workos_client_id=CLIENT_ID))
        user = sandbox.world.create_user("ann@acme.example", first_name="Ann", last_name="Abe")
        sandbox.world.delete_user(user["id"])
        first, last = sandbox.world.events
        deliver(engine, [last])
        forget(engine, user["id"], by("alice"))
        clock.advance(minutes=5)
        assert catch_up(engine, workos).new == 1  # the creation, which no webhook had brought
        apply_all(engine)
        assert outcomes(engine, first) == ["tombstoned"]
        retain(engine, Periods())
        assert personal(engine, "ann@acme.example") == []
        assert set(bodies(engine).values()) == {None}
        workos.close()


def test_user_deleted_by_resync_is_erased_and_can_return(
    engine: Engine, sandbox: Sandbox, workos: WorkOSClient
) -> None:
    world = sandbox.world
    user, other = (world.create_user(f"{name}@acme.example") for name in ("ann", "bob"))
    deliver(engine, world.events)
    kept = world.users[user["id"]]
    with world.silently():
        world.delete_user(user["id"])
    resync(engine, workos)
    assert user_row(engine, user["id"])["deleted_by"] == "resync"
    forget(engine, user["id"], by("alice"))
    assert personal(engine, "ann@acme.example") == []
    world.users[user["id"]] = kept  # as never documented; a confirmed read outranks what a resync found
    resync(engine, workos)
    row = user_row(engine, user["id"])
    assert (row["deleted_by"], row["erased"], row["email"]) == (None, False, "ann@acme.example")
    assert user_row(engine, other["id"])["email"] == "bob@acme.example"


# The command


@pytest.mark.long
def test_forget_erases_at_once(gone: Engine, run_forget: Callable[..., Result]) -> None:
    result = run_forget(USER)
    assert result.exit_code == 0 and f"{USER} is erased" in result.stdout.splitlines()
    assert personal(gone, EMAIL, "married@acme.example") == []
    assert the_neighbour_is_left_alone(gone)
    assert rows(gone, Change)[-1]["cause"] == "operator"
    assert run_forget(USER).exit_code == 0


@pytest.mark.parametrize(
    ("user", "said"),
    [("user_neighbour", "still exists in WorkOS"), ("user_nobody", "no person"), ("", "no person")],
)
def test_forget_refuses_live_or_unknown_user(
    gone: Engine, run_forget: Callable[..., Result], user: str, said: str
) -> None:
    before = rows(gone, User), rows(gone, Change)
    result = run_forget(user)
    assert result.exit_code == 1 and result.stdout == ""
    [line] = result.stderr.splitlines()
    assert said in line
    assert (rows(gone, User), rows(gone, Change)) == before
    assert {row["status"] for row in rows(gone, Event)} == {EventStatus.DONE, EventStatus.FAILED}
