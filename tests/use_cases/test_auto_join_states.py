"""The auto-join state of a domain, its history in `changes`, and the settings of a workspace."""

import pytest
from sqlalchemy import Engine

from models.access import auto_join_for
from models.database import session
from models.tables import AutoJoin, Change, MirrorState
from tests.support import joins, made, rows
from tests.support.actors import by
from tests.support.auto_join import apply_events, set_auto_join
from tests.support.auto_join_events import (
    ANN,
    BOTH,
    IN,
    NEW,
    ON,
    ORG,
    RIVAL,
    answered,
    domain,
    failed,
    history,
    member,
    org,
    reasons,
    states,
)
from tests.support.histories import broken_chains
from worker.errors import ConfigurationError, UnknownIdError
from worker.mirror import auto_join_policy
from worker.reports.explain import explain


def test_every_domain_state_is_recorded_with_its_cause(engine: Engine) -> None:
    rival = {"id": "org_domain_2", "organization_id": RIVAL}
    lived = [
        *(org(), org(id=RIVAL), domain("created"), failed(1), domain(at=2)),
        *(domain(at=3, **rival), domain("deleted", 4, **rival), org("deleted", 5)),
    ]
    for event in lived:
        apply_events(engine, [event])
    assert history(engine, "org_domain_1") == [
        ("pending", "not verified: pending", "event"),
        ("failed", "domain_verification_period_expired", "event"),
        ("verified", None, "event"),
        ("conflicted", "also verified by org_rival", "event"),
        ("verified", None, "event"),
        ("revoked", "the workspace is deleted", "event"),
    ]
    assert [state for state, _, _ in history(engine, "org_domain_2")] == ["conflicted", "revoked"]
    conflicts = [row for row in rows(engine, Change) if row["after"].get("auto_join") == "conflicted"]
    conflict = next(row for row in conflicts if row["object_id"] == "org_domain_1")
    assert conflict["cause_id"] == lived[5]["id"] and conflict["organization_id"] == ORG
    explained = explain(engine, "org_domain_1")
    assert explained is not None
    steps = [step["why"] for step in explained["timeline"] if step["what"] == "auto-join"]
    assert steps == ["conflicted: also verified by org_rival", "verified", "revoked: the workspace is deleted"]


def test_each_event_of_a_batch_records_its_domain_state(one_engine: Engine) -> None:
    rival = {"id": "org_domain_2", "organization_id": RIVAL}
    batch = [org(), org(id=RIVAL), domain("created"), domain(at=2), domain(at=1, **rival), org("deleted", 3, RIVAL)]
    apply_events(one_engine, batch)
    assert history(one_engine, "org_domain_1")[-1] == ("verified", None, "event")
    assert history(one_engine, "org_domain_2")[-1] == ("revoked", "the workspace is deleted", "event")
    assert states(one_engine) == {"org_domain_1": "verified", "org_domain_2": "revoked"}
    noted = {
        (row["domain_id"], row["domain"], row["organization_id"], row["reason"]) for row in rows(one_engine, AutoJoin)
    }
    assert noted == {
        ("org_domain_1", "acme.example", ORG, None),
        ("org_domain_2", "acme.example", RIVAL, "the workspace is deleted"),
    }


def test_renamed_domain_frees_its_old_name(one_engine: Engine) -> None:
    rival = {"id": "org_domain_2", "organization_id": RIVAL}
    apply_events(one_engine, [*ON, org(id=RIVAL), domain(at=1, **rival)])
    renamed = domain("updated", 2, **rival, domain="rival.example", state="verified")
    apply_events(one_engine, [renamed])
    assert joins(one_engine) == {("acme.example", ORG), ("rival.example", RIVAL)}
    assert states(one_engine) == {"org_domain_1": "verified", "org_domain_2": "verified"}
    assert {row["domain"] for row in rows(one_engine, AutoJoin)} == {"acme.example", "rival.example"}
    change = rows(one_engine, Change)[-1]
    assert (change["object_id"], change["organization_id"], change["cause_id"]) == ("org_domain_1", ORG, renamed["id"])
    assert (change["before"]["auto_join"], change["after"]["auto_join"]) == ("conflicted", "verified")
    assert change["before"]["auto_join_reason"] == "also verified by org_rival"
    same = set(change["after"]) - {"auto_join", "auto_join_reason"}
    assert {name: change["before"][name] for name in same} == {name: change["after"][name] for name in same}
    assert change["after"]["state"] == "active" and change["after"]["domain"] == "acme.example"


def test_renamed_verified_domain_is_recorded_by_new_name(one_engine: Engine) -> None:
    apply_events(one_engine, [*ON, domain("updated", 2, domain="new.example")])
    apply_events(one_engine, [domain("updated", 3, domain="newer.example")])
    assert [(row["domain"], row["state"]) for row in rows(one_engine, AutoJoin)] == [("newer.example", "verified")]


def test_deletion_of_rival_workspace_is_the_recorded_cause(one_engine: Engine) -> None:
    apply_events(one_engine, [*ON, org(id=RIVAL), domain(at=1, id="org_domain_2", organization_id=RIVAL)])
    unrelated = domain("created", 2, id="org_domain_3", domain="else.example")
    apply_events(one_engine, [unrelated, end := org("deleted", 2, RIVAL)])
    assert history(one_engine, "org_domain_1")[-1] == ("verified", None, "event")
    last = [row for row in rows(one_engine, Change) if row["object_id"] == "org_domain_1"][-1]
    assert last["cause_id"] == end["id"]


def test_rivals_are_named_in_order(one_engine: Engine) -> None:
    rivals = [domain(at=1, id=f"org_domain_{owner}", organization_id=owner) for owner in ("org_z", "org_b")]
    apply_events(one_engine, [*ON, *rivals])
    assert history(one_engine, "org_domain_1")[-1] == ("conflicted", "also verified by org_b, org_z", "event")


def test_renaming_workspace_changes_no_domain(one_engine: Engine) -> None:
    apply_events(one_engine, ON)
    apply_events(one_engine, [made("organization.updated", 3, id=ORG, name="Renamed", domains=[])])
    assert history(one_engine, "org_domain_1") == [("verified", None, "event")]
    assert [row["kind"] for row in rows(one_engine, Change)][-1] == "organization"


# Settings and switches


def test_switched_off_domain_has_a_reason(engine: Engine) -> None:
    apply_events(engine, ON)
    set_auto_join(engine, "off")
    assert answered(engine, NEW) is None and reasons(engine) == {"AUTO_JOIN is off"}
    set_auto_join(engine, "mirror")
    auto_join_policy.set_workspace(engine, ORG, by("ann", "contractors share the domain"), auto_join=False)
    assert answered(engine, NEW) is None and reasons(engine) == {"switched off by ann: contractors share the domain"}
    auto_join_policy.set_workspace(engine, ORG, by("ann", "over"), auto_join=True, default_role="admin")
    with session(engine) as opened:
        assert auto_join_for(opened, NEW) == (ORG, "admin")


def test_settings_of_unknown_workspace_are_refused(engine: Engine) -> None:
    with pytest.raises(UnknownIdError, match="has no workspace org_none"):
        auto_join_policy.set_workspace(engine, "org_none", by("ann", "why"), auto_join=True)
    with pytest.raises(ConfigurationError, match="nothing to change"):
        auto_join_policy.set_workspace(engine, ORG, by("ann", "why"))


def test_workspace_settings_changes_form_a_chain(engine: Engine) -> None:
    apply_events(engine, ON)
    for auto_join, why in [(False, "a"), (False, "b"), (False, "b"), (True, "b")]:
        auto_join_policy.set_workspace(engine, ORG, by("ann", why), auto_join=auto_join)
    noted = [row for row in rows(engine, Change) if row["kind"] == "workspace_settings"]
    assert [row["after"]["why"] for row in noted] == ["a", "b", "b"]
    assert [row["before"] for row in noted[1:]] == [row["after"] for row in noted[:-1]]
    assert {frozenset(shown) for row in noted for shown in (row["before"], row["after"])} == {
        frozenset({"auto_join", "default_role", "why"})
    }


def test_operator_decisions_form_a_chain_per_workspace(engine: Engine) -> None:
    apply_events(engine, [*IN, org(id=RIVAL), member("deleted", 2)])
    auto_join_policy.unblock(engine, ORG, ANN, by("bob", "hired again"))
    auto_join_policy.block(engine, RIVAL, ANN, by("bob", "a"))
    for why in ("a", "a", "b"):
        auto_join_policy.block(engine, ORG, ANN, by("bob", why))
    auto_join_policy.unblock(engine, ORG, ANN, by("ann", "over"))
    noted = [row for row in rows(engine, Change) if row["kind"] == "join"]
    assert [(row["organization_id"], row["after"]["state"], row["after"]["reasons"]) for row in noted] == [
        (ORG, "unblocked", ["removed"]),
        (RIVAL, "blocked", ["by bob: a"]),
        (ORG, "blocked", ["by bob: a"]),
        (ORG, "blocked", ["by bob: b"]),
        (ORG, "unblocked", ["by bob: b"]),
    ]
    assert [row["before"] is None for row in noted] == [True, True, False, False, False]
    assert broken_chains(noted) == []


def test_workspace_without_admin_is_reported(engine: Engine) -> None:
    apply_events(engine, [*BOTH, member(role="admin")])
    assert auto_join_policy.without_admin(engine, 10) == []
    apply_events(engine, [member("updated", 2)])
    assert [(row["organization_id"], row["members"]) for row in auto_join_policy.without_admin(engine, 10)] == [
        (ORG, 1)
    ]
    auto_join_policy.refresh_counts(engine)
    assert rows(engine, MirrorState)[0]["without_admin"] == 1
