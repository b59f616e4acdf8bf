"""Joins: which people the provisioning worker must add, and for which domains it must search for people."""

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, delete, update

from models.database import in_transaction
from models.tables import Join, JoinSearch, JoinState, MirrorState
from tests.support import JSON, NOON, rows
from tests.support.actors import by
from tests.support.auto_join import apply_events, join_of, joins_of, mark_as_filled, set_auto_join
from tests.support.auto_join_events import ANN, ON, ORG, RIVAL, domain, history, org, user
from worker.mirror import auto_join_policy


@pytest.fixture
def provisioning(one_engine: Engine) -> Engine:
    """A filled mirror in mode `provision` with a verified domain and no open search."""
    set_auto_join(one_engine)
    apply_events(one_engine, ON)
    mark_as_filled(one_engine)
    in_transaction(one_engine, lambda tx: tx.execute(delete(JoinSearch)))
    return one_engine


def searches(engine: Engine) -> list[tuple[Any, ...]]:
    names = ("organization_id", "domain", "created_after", "cause", "cause_id")
    return sorted(tuple(row[name] for name in names) for row in rows(engine, JoinSearch))


def finish_joins(engine: Engine, state: JoinState) -> None:
    """Finish every join as the worker does."""
    done = {
        "due_at": NOON,
        "state": state,
        "reason": "gone",
        "error": "404",
        "attempts": 3,
        "settled_at": NOON,
        "complete_from": NOON,
    }
    in_transaction(engine, lambda tx: tx.execute(update(Join).values(done)))


def test_verified_address_on_domain_creates_join(provisioning: Engine) -> None:
    unverified, signed_up, elsewhere = (
        user(id="user_bob", email="bob@acme.example", email_verified=False),
        user(email="Ann@ACME.example"),
        user(id="user_cat", email="cat@elsewhere.example"),
    )
    apply_events(provisioning, [unverified, signed_up, elsewhere])
    [join] = rows(provisioning, Join)
    assert (join["organization_id"], join["user_id"], join["domain"]) == (ORG, ANN, "acme.example")
    assert (join["state"], join["cause"], join["cause_id"]) == ("pending", "event", signed_up["id"])
    verified = user("updated", 1, id="user_bob", email="bob@acme.example")
    moved = user("updated", 1, id="user_cat", email="cat@acme.example")
    apply_events(provisioning, [verified, moved])
    assert joins_of(provisioning) == dict.fromkeys((ANN, "user_bob", "user_cat"), "pending")
    assert join_of(provisioning, "user_bob")["cause_id"] == verified["id"]
    assert join_of(provisioning, "user_cat")["cause_id"] == moved["id"]


@pytest.mark.parametrize(
    ("state", "event", "after"),
    [
        (JoinState.DROPPED, user("updated", 2, first_name="Annabel"), "dropped"),
        (JoinState.DROPPED, user("updated", 2, email_verified=False), "dropped"),
        (JoinState.DROPPED, user("deleted", 2, email="ann.b@acme.example"), "dropped"),
        (JoinState.DROPPED, user("updated", 2, email="ann.b@acme.example"), "pending"),
        (JoinState.FAILED, user("updated", 2, email="ann.b@acme.example"), "pending"),
        (JoinState.BLOCKED, user("updated", 2, email="ann.b@acme.example"), "blocked"),
        (JoinState.UNDONE, user("updated", 2, email="ann.b@acme.example"), "undone"),
    ],
)
def test_only_new_address_reopens_dropped_or_failed_join(
    provisioning: Engine, state: JoinState, event: JSON, after: str
) -> None:
    apply_events(provisioning, [user()])
    finish_joins(provisioning, state)
    apply_events(provisioning, [event])
    [join] = rows(provisioning, Join)
    assert join["state"] == after
    names = ("reason", "error", "attempts", "settled_at", "complete_from", "cause_id")
    if after == "pending":
        assert tuple(join[name] for name in names) == (None, None, 0, None, None, event["id"])
        assert join["due_at"] > NOON
    else:
        assert tuple(join[name] for name in names)[:5] == ("gone", "404", 3, NOON, NOON)


@pytest.mark.parametrize("mode", ["mirror", "off"])
def test_other_modes_create_no_join(one_engine: Engine, mode: str) -> None:
    set_auto_join(one_engine, mode)
    apply_events(one_engine, [*ON, user()])
    assert rows(one_engine, Join) == [] and rows(one_engine, JoinSearch) == []


def test_newly_verified_domain_starts_search(provisioning: Engine) -> None:
    assert searches(provisioning) == []
    late = domain(at=5, id="org_domain_2", domain="late.example")
    failing = domain("created", 5, id="org_domain_3", domain="failing.example")
    apply_events(provisioning, [late, failing, domain(at=5, id="org_domain_0", domain="not a domain")])
    backfill_from = rows(provisioning, MirrorState)[0]["backfill_from"]
    verified_at = NOON + timedelta(minutes=5)
    assert searches(provisioning) == [(ORG, "late.example", max(verified_at, backfill_from), "event", late["id"])]


def test_search_covers_only_people_after_verification(provisioning: Engine) -> None:
    in_transaction(provisioning, lambda tx: tx.execute(update(MirrorState).values(backfill_from=None)))
    apply_events(provisioning, [event := domain(at=5, id="org_domain_2", domain="late.example")])
    assert searches(provisioning) == [(ORG, "late.example", NOON + timedelta(minutes=5), "event", event["id"])]


@pytest.mark.parametrize("filled", [True, False])
def test_search_covers_everybody_with_existing_setting(one_engine: Engine, filled: bool) -> None:
    set_auto_join(one_engine, existing=True)
    if filled:
        mark_as_filled(one_engine)
    apply_events(one_engine, ON)
    [(*_, created_after, _, cause_id)] = searches(one_engine)
    assert (created_after is None) is filled
    assert cause_id == ON[1]["id"]


def test_search_for_everybody_is_not_narrowed(provisioning: Engine) -> None:
    set_auto_join(provisioning, existing=True)
    apply_events(provisioning, [domain("deleted", 2), domain(at=3, id="org_domain_2")])
    set_auto_join(provisioning, existing=False)
    again = domain(at=5, id="org_domain_3")
    apply_events(provisioning, [domain("deleted", 4, "org_domain_2"), again])
    assert searches(provisioning) == [(ORG, "acme.example", None, "event", again["id"])]


def test_searches_are_separate_for_each_domain_and_workspace(provisioning: Engine) -> None:
    set_auto_join(provisioning, existing=True)
    apply_events(provisioning, [domain("deleted", 2), domain(at=3, id="org_domain_2")])
    set_auto_join(provisioning, existing=False)
    apply_events(provisioning, [domain(at=4, id="org_domain_3", domain="late.example")])
    apply_events(provisioning, [domain("deleted", 5, "org_domain_2"), org(id=RIVAL)])
    apply_events(provisioning, [domain(at=6, id="org_domain_4", organization_id=RIVAL)])
    assert [(owner, name, after is None) for owner, name, after, *_ in searches(provisioning)] == [
        (ORG, "acme.example", True),
        (ORG, "late.example", False),
        (RIVAL, "acme.example", False),
    ]


def test_sign_up_event_counts_before_mirror_is_filled(one_engine: Engine) -> None:
    set_auto_join(one_engine)
    apply_events(one_engine, [*ON, user()])
    assert joins_of(one_engine) == {ANN: "pending"}


def test_already_verified_domain_starts_no_search(provisioning: Engine) -> None:
    apply_events(provisioning, [domain("updated", 2, domain="ACME.example")])
    assert history(provisioning, "org_domain_1")[-1] == ("verified", None, "event")
    assert len(history(provisioning, "org_domain_1")) == 2 and searches(provisioning) == []


def test_resolved_conflict_starts_search_for_remaining_workspace(provisioning: Engine) -> None:
    rival = {"id": "org_domain_2", "organization_id": RIVAL}
    apply_events(provisioning, [domain(at=2, **rival)])
    assert searches(provisioning) == []
    apply_events(provisioning, [end := domain("deleted", 3, **rival)])
    assert [(owner, name, cause) for owner, name, _, _, cause in searches(provisioning)] == [
        (ORG, "acme.example", end["id"])
    ]


def test_switching_workspace_on_starts_search(provisioning: Engine) -> None:
    set_auto_join(provisioning, existing=True)
    other = {"id": "org_domain_2", "organization_id": RIVAL, "domain": "rival.example"}
    apply_events(provisioning, [org(id=RIVAL), domain(at=2, **other)])
    in_transaction(provisioning, lambda tx: tx.execute(delete(JoinSearch)))
    auto_join_policy.set_workspace(provisioning, ORG, by("ann", "wait"), auto_join=False)
    assert searches(provisioning) == []
    auto_join_policy.set_workspace(provisioning, ORG, by("ann", "go"), auto_join=True)
    assert searches(provisioning) == [(ORG, "acme.example", None, "operator", "ann")]


@pytest.mark.parametrize(
    ("before", "after", "cause", "everybody"),
    [
        (("mirror", False), ("provision", True), "AUTO_JOIN", True),
        (("mirror", True), ("provision", True), "AUTO_JOIN", True),
        (("mirror", False), ("provision", False), "AUTO_JOIN", False),
        (("off", False), ("provision", True), "AUTO_JOIN", True),
        (("provision", False), ("provision", True), "AUTO_JOIN_EXISTING", True),
    ],
)
def test_a_setting_by_which_more_people_join_searches_for_them(
    both_engines: Engine, before: tuple[str, bool], after: tuple[str, bool], cause: str, everybody: bool
) -> None:
    set_auto_join(both_engines, before[0], existing=before[1])
    mark_as_filled(both_engines)
    in_transaction(both_engines, lambda tx: tx.execute(update(MirrorState).values(backfill_from=None)))
    other: JSON = {"organization_id": RIVAL, "domain": "rival.example"}
    switched_off: JSON = {"organization_id": "org_off", "domain": "off.example"}
    events = [org(id=RIVAL), domain(at=3, id="org_domain_2", **other)]
    events += [org(id="org_off"), domain(at=3, id="org_domain_3", **switched_off), domain("created", id="org_domain_4")]
    events.append(domain(at=4, id="org_domain_5", domain="more.example"))
    # Earlier claims that no longer count: the domain is deleted, or its workspace.
    events += [domain(at=1, id="org_domain_6", **other), domain("deleted", 2, "org_domain_6", **other)]
    events += [org(id="org_gone"), domain(at=1, id="org_domain_7", **other | {"organization_id": "org_gone"})]
    events.append(org("deleted", 2, id="org_gone"))
    apply_events(both_engines, [*ON, user(), *events])
    auto_join_policy.set_workspace(both_engines, "org_off", by("ann", "why"), auto_join=False)
    in_transaction(both_engines, lambda tx: tx.execute(delete(JoinSearch)))
    set_auto_join(both_engines, after[0], existing=after[1])
    verified = {(ORG, "acme.example"): 0, (ORG, "more.example"): 4, (RIVAL, "rival.example"): 3}
    after_minute = {place: None if everybody else NOON + timedelta(minutes=at) for place, at in verified.items()}
    assert searches(both_engines) == [(*place, at, "settings", cause) for place, at in after_minute.items()]
    in_transaction(both_engines, lambda tx: tx.execute(delete(JoinSearch)))
    set_auto_join(both_engines, after[0], existing=after[1])
    assert searches(both_engines) == [], "the next start of a process changes nothing"


@pytest.mark.parametrize("after", [("mirror", True), ("off", True), ("provision", False)])
def test_a_setting_by_which_nobody_joins_searches_for_nobody(provisioning: Engine, after: tuple[str, bool]) -> None:
    set_auto_join(provisioning, existing=True)
    in_transaction(provisioning, lambda tx: tx.execute(delete(JoinSearch)))
    set_auto_join(provisioning, after[0], existing=after[1])
    assert searches(provisioning) == []


def test_turning_auto_join_on_adds_nobody_who_signed_up_while_it_was_off(one_engine: Engine) -> None:
    set_auto_join(one_engine, "off")
    apply_events(one_engine, [*ON, user()])
    mark_as_filled(one_engine)
    set_auto_join(one_engine, "provision")
    assert searches(one_engine) == []


def test_unblocking_creates_join_for_that_person_only(provisioning: Engine) -> None:
    apply_events(provisioning, [user(), user(id="user_bob", email="bob@acme.example")])
    in_transaction(provisioning, lambda tx: tx.execute(delete(Join)))
    auto_join_policy.block(provisioning, ORG, ANN, by("ann", "why"))
    auto_join_policy.unblock(provisioning, ORG, ANN, by("eve", "over"))
    [join] = rows(provisioning, Join)
    assert (join["user_id"], join["state"], join["cause"], join["cause_id"]) == (ANN, "pending", "operator", "eve")


def test_unblocking_deleted_or_unverified_person_creates_no_join(provisioning: Engine) -> None:
    bob: JSON = {"id": "user_bob", "email": "bob@acme.example"}
    apply_events(provisioning, [user(email_verified=False), user(**bob)])
    for id in (ANN, "user_bob"):
        auto_join_policy.block(provisioning, ORG, id, by("ann", "why"))
    apply_events(provisioning, [user("deleted", 2, **bob)])
    for id in (ANN, "user_bob"):
        auto_join_policy.unblock(provisioning, ORG, id, by("eve", "over"))
    assert rows(provisioning, Join) == []
