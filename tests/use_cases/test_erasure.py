"""Erasure blanks every stored payload that names the person, whatever its outcome and time."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import Result
from sqlalchemy import Engine, insert, update

from models.database import in_transaction, write_transaction
from models.tables import Base, Change, Event, EventStatus, LateVersion
from models.types import db_now_plus
from tests.support import JSON, apply_all, event_row, made, rows, sample
from tests.support.actors import by
from tests.support.histories import broken_chains
from tests.support.resync import deliver, quietly, report, resync
from worker.inbox.dismissal import dismiss
from worker.inbox.selection import Selection
from worker.inbox.store import ReceivedEvent
from worker.kinds import KINDS, READERS
from worker.kinds.membership import Membership
from worker.kinds.user import User
from worker.mirror import erasure
from worker.mirror.erasure import forget
from worker.mirror.retention import Periods, retain
from worker.repair.replay import plan
from worker.reports import listings
from worker.sandbox import Sandbox
from worker.workos_api.client import WorkOSClient

USER = sample("user.deleted")["data"]["id"]
EMAIL = sample("user.deleted")["data"]["email"]
MARRIED = "Ada@BÜCHER.example"
PERSONAL = (EMAIL, "ada@bücher.example", "ada@xn--bcher-kva.example", "Hopper", "203.0.113.7", "crm-4711")
KEYS: JSON = {"external_id": "crm-4711", "metadata": {"crm": "crm-4711"}}
NEIGHBOUR = f"jo-{EMAIL}"
PERSON = {"id": USER, "email": EMAIL, "first_name": "Ada", "last_name": "Hopper"}


def ignored(type: str, **data: Any) -> JSON:
    """An event of an ignored type."""
    return made("dsync.activated") | {"event": type, "data": data}


def put(engine: Engine, *bodies: bytes) -> None:
    """Put the bytes of events into the inbox as they were received."""
    values = [{**ReceivedEvent.of(json.loads(body), body)._asdict(), "source": "webhook"} for body in bodies]
    in_transaction(engine, lambda tx: tx.execute(insert(Event), values))


def personal(engine: Engine) -> list[str]:
    """The tables that still contain the person. Payloads are decoded first, so escapes cannot hide a name."""
    found = []
    for table in Base.metadata.sorted_tables:
        for row in rows(engine, table):
            shown = {k: json.loads(v) if isinstance(v, bytes) else v for k, v in row.items()}
            text = str(shown).lower().replace(NEIGHBOUR, "")
            if any(word.lower() in text for word in PERSONAL):
                found.append(table.name)
    return sorted(found)


def kept(engine: Engine, event: JSON) -> bool:
    return event_row(engine, event["id"])["body"] is not None


def nested(at: int) -> JSON:
    """A membership of the person, with the person in it."""
    shown: JSON = {"user": PERSON, "custom_attributes": {"crm": "crm-4711"}}
    return made("organization_membership.updated", at, user_id=USER, **shown)


@pytest.fixture
def neighbour(engine: Engine) -> JSON:
    """Another person's event: the id starts like the person's id, and the address ends like theirs."""
    event = made("user.created", id=f"{USER}0", email=NEIGHBOUR, first_name="Jo", last_name="Hop")
    deliver(engine, [event])
    return event


@pytest.fixture
def deleted(engine: Engine, neighbour: JSON) -> Engine:
    """A user who was renamed and deleted in WorkOS, with events of every outcome that name them."""
    assert neighbour
    dismissed = made("user.updated", 2, id=None)
    by_actor = made("organization.updated", 2) | {"context": {"actor": {"id": USER, "name": "Ada Hopper"}}}
    deliver(
        engine, [made("user.created", **KEYS), made("user.updated", 1, email=MARRIED), dismissed, nested(2), by_actor]
    )
    put(
        engine,
        # Broken, without the person's id, and spelled in other ways.
        json.dumps(made("user.updated", 3, id=None, email=EMAIL.upper())).replace("@", r"\u0040").encode(),
        json.dumps(made("user.updated", 3, id=None, email="ada@xn--bcher-kva.example")).encode(),
        json.dumps(made("user.updated", 4, id=7, email=MARRIED), ensure_ascii=False).encode(),
        json.dumps(made("organization.updated", 4, name=f"Mail <{EMAIL}>", updated_at="odd")).encode("utf-16"),
    )
    deliver(engine, [made("user.deleted", 5, email=MARRIED)])
    assert dismiss(engine, [dismissed["id"]], by("ann", "a test")) == 1
    return engine


@pytest.mark.long
def test_versions_that_arrived_late_are_blanked(deleted: Engine) -> None:
    deliver(deleted, [made("user.updated", -1, email=EMAIL)])
    assert "late_versions" in personal(deleted)
    forget(deleted, USER, by("ann"))
    deliver(deleted, [made("user.updated", -2, email=EMAIL)])
    assert "late_versions" not in personal(deleted) and len(rows(deleted, LateVersion)) == 2
    with write_transaction(deleted) as tx:
        tx.execute(update(LateVersion).values(at=db_now_plus(-366 * 86_400)))
    assert retain(deleted, Periods())["late_versions"] == 2


def test_every_payload_naming_the_person_is_blanked(
    deleted: Engine, run_forget: Callable[..., Result], neighbour: JSON
) -> None:
    assert set(personal(deleted)) >= {"events", "users", "memberships", "changes"}
    result = run_forget(USER)
    assert result.exit_code == 0, result.stderr
    assert personal(deleted) == []
    assert kept(deleted, neighbour)
    [row] = [row for row in rows(deleted, User) if row["id"] != USER]
    assert (row["email"], row["first_name"]) == (NEIGHBOUR, "Jo")


def test_forget_reports_what_it_blanked_and_could_not_read(deleted: Engine, run_forget: Callable[..., Result]) -> None:
    waits = [made("user.updated", 9), nested(9)]
    put(deleted, *(json.dumps(event).encode() for event in waits))
    cut = {"id": "event_cut", "type": "user.updated", "body": b'{"id": "event_cut"', "status": EventStatus.FAILED}
    in_transaction(deleted, lambda tx: tx.execute(insert(Event).values(**cut, source="webhook")))
    result = run_forget(USER, "--json")
    assert result.exit_code == 0 and json.loads(result.stdout) == {
        "user": USER,
        "payloads": 10,
        "failed_payloads": 4,
        "changes": 4,
        "drift": 0,
        "hook_errors": 0,
        "reasons": 0,
        "pending": 2,
        "unparsed": 1,
    }
    assert [kept(deleted, event) for event in waits] == [True, True]
    apply_all(deleted)
    assert [kept(deleted, event) for event in waits] == [False, False]
    shown = run_forget(USER).stdout
    assert f"{USER} is erased" in shown and "blanked: 0 payloads, 0 changes" in shown
    assert "payloads that are not JSON and were searched as plain text: 1" in shown and "not erased: backups" in shown


def test_truncated_payload_is_searched_as_text(deleted: Engine) -> None:
    body = json.dumps({"id": "event_cut", "email": EMAIL}).replace("@", r"\u0040").encode()[:-1]
    cut = {"id": "event_cut", "type": "user.updated", "body": body, "status": EventStatus.FAILED}
    in_transaction(deleted, lambda tx: tx.execute(insert(Event).values(**cut, source="webhook")))
    assert forget(deleted, USER, by("ann")).unparsed == 0
    assert event_row(deleted, "event_cut")["body"] is None


def test_payload_of_ignored_type_is_kept_until_processed(engine: Engine) -> None:
    session = ignored("session.created", user_id=USER, ip_address="203.0.113.7")
    mail = ignored("authentication.magic_auth_failed", email=EMAIL, ip_address="203.0.113.7")
    acted_on = made("organization.created")
    put(engine, *(json.dumps(event).encode() for event in (session, mail, acted_on)))
    assert personal(engine) == ["events", "events"]
    apply_all(engine)
    assert [kept(engine, event) for event in (session, mail, acted_on)] == [False, False, True]
    assert [(row["status"], row["outcome"]) for row in rows(engine, Event) if row["body"] is None] == [
        ("done", "ignored")
    ] * 2
    shown = listings.show_event(engine, session["id"])
    assert shown is not None and shown["body"] is None
    assert plan(engine, Selection(type="session.created")) == (0, 0, {}, 0)
    assert plan(engine, Selection(ids=(session["id"],))) == (1, 1, {}, 0)


def test_retention_blanks_payloads_kept_by_earlier_release(engine: Engine) -> None:
    session = ignored("session.created", user_id=USER)
    deliver(engine, [session, made("organization.created")])
    in_transaction(engine, lambda tx: tx.execute(update(Event).where(Event.id == session["id"]).values(body=b"{}")))
    assert retain(engine, Periods())["payloads"] == 1 and not kept(engine, session)


def test_later_events_restore_nothing(deleted: Engine) -> None:
    forget(deleted, USER, by("ann"))
    late = [made("user.updated", 9), made("user.deleted", 9), nested(9), ignored("session.revoked", user_id=USER)]
    broken = [made("user.updated", 9, updated_at=None), made("organization_membership.updated", 9, user_id=USER, id=7)]
    deliver(deleted, [*late, *broken])
    assert [kept(deleted, event) for event in late] == [False] * 4
    assert [event_row(deleted, event["id"])["outcome"] for event in late] == [
        "tombstoned",
        "tombstoned",
        "unchanged",
        "ignored",
    ]
    retain(deleted, Periods())
    assert [kept(deleted, event) for event in broken] == [False] * 2
    assert personal(deleted) == []


def test_retention_blanks_membership_kept_by_earlier_release(deleted: Engine) -> None:
    forget(deleted, USER, by("ann"))
    late = nested(9)
    deliver(deleted, [late])
    in_transaction(
        deleted,
        lambda tx: tx.execute(update(Event).where(Event.id == late["id"]).values(body=json.dumps(late).encode())),
    )
    assert personal(deleted) == ["events"]
    retain(deleted, Periods())
    assert personal(deleted) == []


def test_retention_erases_membership_that_arrived_after_the_erasure(deleted: Engine) -> None:
    forget(deleted, USER, by("ann"))
    late = nested(9)
    late["data"]["id"] = "om_late"
    deliver(deleted, [late])
    assert set(personal(deleted)) == {"memberships", "changes"}
    assert retain(deleted, Periods())["erased_memberships"] == 1
    assert personal(deleted) == [] and broken_chains(rows(deleted, Change)) == []


def test_delete_event_is_final_for_an_erased_membership_that_a_resync_found_gone(
    engine: Engine, sandbox: Sandbox, workos: WorkOSClient
) -> None:
    world = sandbox.world
    organization, user = world.create_organization("Acme")["id"], world.create_user(EMAIL)["id"]
    membership = world.create_membership(organization, user)["id"]
    world.create_user("bob@acme.example")
    deliver(engine, world.events)
    shown = world.memberships[membership]
    quietly(world, lambda: world.delete_user(user))
    resync(engine, workos)
    forget(engine, user, by("ann"))
    deliver(engine, [made("organization_membership.deleted", -9_999, **shown)])
    assert {(row["deleted_by"], row["erased"]) for row in rows(engine, Membership)} == {("event", True)}


def test_interrupted_erasure_starts_over(deleted: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(erasure, "BATCH", 2)

    def dies(number: int) -> None:
        if number >= 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        forget(deleted, USER, by("ann"), dies)
    assert "users" in personal(deleted)  # or nobody would know any more what to search for
    forget(deleted, USER, by("ann"))
    assert personal(deleted) == []


def test_retention_resumes_interrupted_erasure(deleted: Engine) -> None:
    in_transaction(deleted, lambda tx: tx.execute(update(User).values(touched_at=db_now_plus(-31 * 24 * 3600.0))))
    asked = iter([False, True])
    assert erasure.erase_deleted(deleted, Periods().persons, lambda: next(asked)) == 0
    assert retain(deleted, Periods())["persons"] == 1
    assert personal(deleted) == []


def test_erasure_is_one_change_of_each_object(deleted: Engine) -> None:
    known = len(rows(deleted, Change))
    forget(deleted, USER, by("ann"))
    forget(deleted, USER, by("ann"))
    added = sorted(rows(deleted, Change), key=lambda row: int(row["id"]))[known:]
    assert [row["kind"] for row in added] == ["user", "membership"]
    for row in added:
        before, after = row["before"], row["after"]
        differences = {name: (before[name], new) for name, new in after.items() if before[name] != new}
        assert differences == {"erased": (False, True)}
    assert broken_chains(rows(deleted, Change)) == []


def test_error_of_failed_event_quotes_no_payload(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_kind: Any, data: Any, _envelope: Any, _roles: Any) -> Any:
        raise ValueError(data.text("email"))

    deliver(engine, [made("user.deleted")])
    monkeypatch.setitem(READERS, "user.updated", (KINDS["user"], fails))
    put(engine, json.dumps(made("user.updated", 1)).encode())
    pending = Event.status == EventStatus.PENDING
    in_transaction(engine, lambda tx: tx.execute(update(Event).where(pending).values(attempts=9)))
    apply_all(engine)
    assert EMAIL in {row["error"] for row in rows(engine, Event) if row["error"]}.pop()
    forget(engine, USER, by("ann"))
    assert personal(engine) == []
    assert [row["error"] for row in rows(engine, Event) if row["error"]] == ["ValueError"]


@pytest.mark.long
def test_dry_run_records_no_erased_person(engine: Engine, sandbox: Sandbox, workos: WorkOSClient) -> None:
    world = sandbox.world
    user = world.create_user(EMAIL, first_name="Ada", last_name="Hopper")
    world.create_user("bob@acme.example")
    deliver(engine, world.events)
    shown = world.users[user["id"]]
    with world.silently():
        world.delete_user(user["id"])
    resync(engine, workos)
    forget(engine, user["id"], by("ann"))
    world.users[user["id"]] = shown
    found = report(engine, resync(engine, workos, dry_run=True))
    assert [(row["object_id"], row["finding"]) for row in found if row["kind"] == "user"] == [(user["id"], "missing")]
    assert personal(engine) == []
