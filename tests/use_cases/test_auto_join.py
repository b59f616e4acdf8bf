"""Who has access and who joins by domain: histories of events, and the answers of the access contract after each."""

import itertools
import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, delete, text, update

from models.access import auto_join_for
from models.database import in_transaction, open_engine, read_transaction, session
from models.tables import AutoJoin, Change, Join, JoinSearch, JoinState, Mirror
from models.views import auto_join_domains
from tests.support import JSON, NOON, access, joins, made, rows
from tests.support.auto_join import is_filled, join_of, joins_of, put_in_force, tell
from tests.support.histories import broken_chains
from worker.errors import ConfigurationError, UnknownIdError
from worker.kinds import KINDS
from worker.kinds.domain import Domain
from worker.kinds.membership import Membership
from worker.mirror import auto_join_policy
from worker.reports.access import access_of, domain_states
from worker.reports.explain import explain

ANN, ORG, RIVAL = "user_ann", "org_acme", "org_rival"
EMAIL, NEW = "ann@acme.example", "new@acme.example"


def org(verb: str = "created", at: int = 0, id: str = ORG) -> JSON:
    return made(f"organization.{verb}", at, id=id, name=id, domains=[])


def user(verb: str = "created", at: int = 0, **data: Any) -> JSON:
    ann: JSON = {"id": ANN, "email": EMAIL, "email_verified": True}
    return made(f"user.{verb}", at, **ann | data)


def member(verb: str = "created", at: int = 0, id: str = "om_1", role: str = "member", **data: Any) -> JSON:
    place: JSON = {"id": id, "organization_id": ORG, "user_id": ANN, "status": "active"}
    slugs = data.pop("roles", [role])
    roles: JSON = {"role": {"slug": slugs[0]}, "roles": [{"slug": slug} for slug in slugs]}
    return made(
        f"organization_membership.{verb}", at, **place | roles | {"created_at": f"2025-07-01T12:{at:02}:00Z"} | data
    )


def domain(verb: str = "verified", at: int = 0, id: str = "org_domain_1", **data: Any) -> JSON:
    state = {"verified": "verified", "created": "pending"}.get(verb, "verified")
    return made(
        f"organization_domain.{verb}",
        at,
        **{"id": id, "organization_id": ORG, "domain": "acme.example", "state": state} | data,
    )


def failed(at: int, id: str = "org_domain_1", reason: str = "domain_verification_period_expired") -> JSON:
    event = made("organization_domain.verification_failed", at, id=id, organization_id=ORG, domain="acme.example")
    event["data"]["reason"] = reason
    return event


class Row(NamedTuple):
    """A history, and the answers after it: Ann's role, the workspace that `email` joins by domain, and one reason."""

    name: str
    events: Sequence[JSON]
    role: str | None
    joins: str | None
    why: str
    email: str = NEW


BOTH = [org(), user()]
IN = [*BOTH, member()]
ON = [org(), domain()]
ACTIVE = "active membership; neither the person nor the workspace is deleted"
ONLY = "verified by this workspace only"
TABLE = [
    # Who has access.
    Row("member", IN, "member", None, ACTIVE),
    Row("admin", [*BOTH, member(role="admin")], "admin", None, ACTIVE),
    Row("unknown role", [*BOTH, member(role="owner")], "member", None, ACTIVE),
    Row("no role", [*BOTH, member(roles=[""])], "member", None, ACTIVE),
    Row("highest of several roles", [*BOTH, member(roles=["member", "admin", "billing"])], "admin", None, ACTIVE),
    Row("made admin", [*IN, member("updated", 2, role="admin")], "admin", None, ACTIVE),
    Row("made admin, created event late", [*BOTH, member("updated", 2, role="admin"), member()], "admin", None, ACTIVE),
    Row("invited", [*BOTH, member(status="pending")], None, None, "the membership is pending"),
    Row("accepted", [*BOTH, member(status="pending"), member("updated", 2)], "member", None, ACTIVE),
    Row("deactivated", [*IN, member("updated", 2, status="inactive")], None, None, "the membership is inactive"),
    Row(
        "activated again",
        [*IN, member("updated", 2, status="inactive"), member("updated", 3)],
        "member",
        None,
        ACTIVE,
    ),
    Row("unknown status", [*BOTH, member(status="dormant")], None, None, "the membership is dormant"),
    Row("no status", [*BOTH, member(status=None)], None, None, "the membership has no status"),
    Row("removed", [*IN, member("deleted", 2)], None, None, "the membership was deleted in WorkOS"),
    Row(
        "removed, delete event first",
        [*BOTH, member("deleted", 2), member()],
        None,
        None,
        "the membership was deleted in WorkOS",
    ),
    Row("removed and invited again", [*IN, member("deleted", 2), member(at=3, id="om_2")], "member", None, ACTIVE),
    Row("old id removed late", [*IN, member(at=3, id="om_2"), member("deleted", 2)], "member", None, ACTIVE),
    Row(
        "two memberships, the newest counts",
        [*BOTH, member(role="admin"), member(at=3, id="om_2")],
        "member",
        None,
        "a newer membership of the same person in this workspace takes precedence",
    ),
    Row("user deleted", [*IN, user("deleted", 2)], None, None, "the person was deleted in WorkOS"),
    Row(
        "user deleted, delete event first",
        [org(), user("deleted", 2), user(), member()],
        None,
        None,
        "the person was deleted in WorkOS",
    ),
    Row("workspace deleted", [*IN, org("deleted", 2)], None, None, "the workspace was deleted in WorkOS"),
    Row("workspace not in the mirror yet", [user(), member()], None, None, "the workspace is not in the mirror yet"),
    Row("person not in the mirror yet", [org(), member()], None, None, "the person is not in the mirror yet"),
    Row("parents last", [member(), user(), org()], "member", None, ACTIVE),
    # Who joins by domain.
    Row("verified", ON, None, ORG, ONLY),
    Row("created verified", [org(), domain("created", state="verified")], None, ORG, ONLY),
    Row("updated to verified", [org(), domain("created"), domain("updated", 2, state="verified")], None, ORG, ONLY),
    Row("legacy verified", [org(), domain("created", state="legacy_verified")], None, ORG, ONLY),
    Row("pending", [org(), domain("created")], None, None, "not verified: pending"),
    Row("unverified", [org(), domain("created", state="unverified")], None, None, "not verified: unverified"),
    Row("unknown state", [org(), domain("created", state="vouched")], None, None, "not verified: vouched"),
    Row("no state", [org(), domain("created", state=None)], None, None, "not verified: WorkOS sent no state"),
    Row(
        "failed", [org(), domain("created"), failed(2)], None, None, "not verified: domain_verification_period_expired"
    ),
    Row(
        "failed, verified by another workspace",
        [org(), failed(2, reason="domain_verified_by_other_organization")],
        None,
        None,
        "not verified: domain_verified_by_other_organization",
    ),
    Row("failed, then verified", [org(), failed(2), domain(at=3)], None, ORG, ONLY),
    Row("verified, failed event late", [org(), domain(at=3), failed(2)], None, ORG, ONLY),
    Row("domain deleted", [*ON, domain("deleted", 2)], None, None, "the domain is deleted"),
    Row(
        "domain deleted, delete first",
        [org(), domain("deleted", 2), domain()],
        None,
        None,
        "the domain is deleted",
    ),
    Row("made again after a delete", [*ON, domain("deleted", 2), domain(at=3, id="org_domain_2")], None, ORG, ONLY),
    Row("its workspace deleted", [*ON, org("deleted", 2)], None, None, "the workspace is deleted"),
    Row("its workspace not in the mirror yet", [domain()], None, None, "the workspace is not in the mirror yet"),
    Row("upper case", [org(), domain(domain="ACME.Example")], None, ORG, ONLY),
    Row("trailing dot", [org(), domain(domain="acme.example.")], None, ORG, ONLY),
    Row("trailing dot in the address", ON, None, ORG, ONLY, "new@Acme.Example."),
    Row("subdomain of it", ON, None, None, ONLY, "new@mail.acme.example"),
    Row("it is a subdomain", [org(), domain(domain="mail.acme.example")], None, None, ONLY),
    Row("letters beyond ASCII", [org(), domain(domain="bücher.example")], None, ORG, ONLY, "new@BÜCHER.example"),
    Row("the same in IDNA", [org(), domain(domain="bücher.example")], None, ORG, ONLY, "new@xn--bcher-kva.example"),
    Row("not a domain name", [org(), domain(domain="not a domain")], None, None, "not a valid domain name"),
    Row("one label", [org(), domain(domain="localhost")], None, None, "not a valid domain name", "new@localhost"),
    Row(
        "public provider",
        [org(), domain(domain="gmail.com")],
        None,
        None,
        "domain of a public mail provider",
        "new@gmail.com",
    ),
    Row("two claims of one workspace", [*ON, domain(id="org_domain_2")], None, ORG, ONLY),
    Row(
        "in conflict",
        [*ON, org(id=RIVAL), domain(id="org_domain_2", organization_id=RIVAL)],
        None,
        None,
        "in conflict: also verified by org_rival",
    ),
    Row(
        "in conflict with a workspace not in the mirror yet",
        [*ON, domain(id="org_domain_2", organization_id=RIVAL)],
        None,
        None,
        "in conflict: also verified by org_rival",
    ),
    Row(
        "the rival deleted its domain",
        [*ON, org(id=RIVAL), domain(id="org_domain_2", organization_id=RIVAL), domain("deleted", 2, "org_domain_2")],
        None,
        ORG,
        ONLY,
    ),
    Row(
        "the rival's workspace deleted",
        [*ON, org(id=RIVAL), domain(id="org_domain_2", organization_id=RIVAL), org("deleted", 2, RIVAL)],
        None,
        ORG,
        ONLY,
    ),
    Row(
        "the rival is only pending",
        [*ON, org(id=RIVAL), domain("created", id="org_domain_2", organization_id=RIVAL)],
        None,
        ORG,
        ONLY,
    ),
    # Both: people who had access and lost it.
    Row("removed, same address", [*IN, domain(), member("deleted", 2)], None, None, ONLY, EMAIL),
    Row(
        "removed, the address in capitals", [*IN, domain(), member("deleted", 2)], None, None, ONLY, "ANN@acme.example"
    ),
    Row("deactivated, same address", [*IN, domain(), member("updated", 2, status="inactive")], None, None, ONLY, EMAIL),
    Row("invited, same address", [*BOTH, domain(), member(status="pending")], None, None, ONLY, EMAIL),
    Row("removed, another person", [*IN, domain(), member("deleted", 2)], None, ORG, ONLY),
    Row(
        "removed and invited again and in",
        [*IN, domain(), member("deleted", 2), member(at=3, id="om_2")],
        "member",
        ORG,
        ONLY,
        EMAIL,
    ),
    Row(
        "removed, delete first, same address",
        [*BOTH, domain(), member("deleted", 2), member()],
        None,
        None,
        ONLY,
        EMAIL,
    ),
]


def answered(engine: Engine, email: str) -> str | None:
    with session(engine) as opened:
        found = auto_join_for(opened, email)
    return found.organization_id if found else None


def reasons(engine: Engine) -> set[str]:
    """The reasons of all memberships and domains."""
    with read_transaction(engine) as tx:
        return {row["why"] for row in (*access_of(tx, Membership.id != ""), *domain_states(tx, Domain.id != ""))}


def test_row_names_are_unique() -> None:
    assert len({row.name for row in TABLE}) == len(TABLE) >= 40


def ends_as(engine: Engine, row: Row) -> None:
    """Check the access after a row's history."""
    assert {role for _, who, role in access(engine) if who == ANN} == ({row.role} if row.role else set())
    assert answered(engine, row.email) == row.joins
    assert row.why in reasons(engine)


@pytest.mark.parametrize("row", TABLE, ids=[row.name for row in TABLE])
def test_history_in_order_ends_in_the_expected_access(one_engine: Engine, row: Row) -> None:
    for event in row.events:
        tell(one_engine, [event])
    ends_as(one_engine, row)


@pytest.mark.parametrize("row", TABLE, ids=[row.name for row in TABLE])
def test_reversed_history_ends_in_the_expected_access(one_engine: Engine, row: Row) -> None:
    tell(one_engine, reversed(row.events))
    ends_as(one_engine, row)


def test_histories_end_in_the_expected_access_on_postgresql(make_database: Any) -> None:
    """All histories use one database, which is emptied after each: creating one for each takes too long."""
    engine = open_engine(make_database("postgresql"))
    for row in TABLE:
        for event in row.events:
            tell(engine, [event])
        ends_as(engine, row)
        in_transaction(
            engine,
            lambda tx: tx.execute(
                text(f"TRUNCATE events, {', '.join(kind.table.__tablename__ for kind in KINDS.values())}")
            ),
        )
    engine.dispose()


# The states and their history


def states(engine: Engine) -> dict[str, str]:
    return {row["domain_id"]: row["state"] for row in rows(engine, AutoJoin)}


def history(engine: Engine, id: str) -> list[tuple[str, str | None, str]]:
    """State, reason and cause of each step of a domain's auto-join."""
    found = [row for row in rows(engine, Change) if row["kind"] == "domain" and row["object_id"] == id]
    steps = [(row["after"]["auto_join"], row["after"]["auto_join_reason"], row["cause"]) for row in found]
    was = [(row["before"] or {}).get("auto_join") for row in found]
    assert was[1:] == [state for state, _, _ in steps][:-1], "each step starts from the state before it"
    return steps


def test_every_state_of_a_domain_is_in_changes_with_its_cause(engine: Engine) -> None:
    rival = {"id": "org_domain_2", "organization_id": RIVAL}
    lived = [
        *(org(), org(id=RIVAL), domain("created"), failed(1), domain(at=2)),
        *(domain(at=3, **rival), domain("deleted", 4, **rival), org("deleted", 5)),
    ]
    for event in lived:
        tell(engine, [event])
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


def agrees(engine: Engine) -> bool:
    """Whether the recorded states agree with the view."""
    joined = {(row["domain"], row["organization_id"]) for row in rows(engine, auto_join_domains)}
    recorded = {
        (row["domain"], row["organization_id"])
        for row in rows(engine, AutoJoin)
        if row["state"] == "verified" and row["domain"]
    }
    return joined == {place for place in recorded if place[0] != "gmail.com"}


FIGHT = {
    "acme verifies": domain(at=1),
    "acme fails": failed(2),
    "acme verifies again": domain(at=3),
    "rival verifies": domain(at=1, id="org_domain_2", organization_id=RIVAL),
    "rival lets go": domain("deleted", 4, "org_domain_2", organization_id=RIVAL),
}


@pytest.mark.long
def test_conflicting_claims_in_every_order_never_allow_a_wrong_join(make_database: Any) -> None:
    """Every order of verify, fail and delete, each with its own ids in one database."""
    engine = open_engine(make_database("postgresql"))
    tried = 0
    for number, order in enumerate(itertools.permutations(FIGHT)):
        history = json.dumps([FIGHT[name] for name in order])
        for old in ("org_domain_1", "org_domain_2", "acme.example"):
            history = history.replace(old, f"n{number}-{old}")
        events = json.loads(history)
        tell(engine, [org(), org(id=RIVAL)])
        done: set[str] = set()
        for name, event in zip(order, events, strict=True):
            tell(engine, [event | {"id": f"event_{number}_{name.replace(' ', '_')}"}])
            done.add(name)
            holds_acme = bool(done & {"acme verifies again"}) or done & {"acme verifies", "acme fails"} == {
                "acme verifies"
            }
            holds_rival = "rival verifies" in done and "rival lets go" not in done
            expected = {ORG} if holds_acme and not holds_rival else {RIVAL} if holds_rival and not holds_acme else set()
            name_of = f"n{number}-acme.example"
            assert {owner for domain, owner in joins(engine) if domain == name_of} == expected, (order, done)
        tried += 1
    assert tried == 120 and agrees(engine)
    engine.dispose()


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_order_of_events_ends_in_the_same_access(make_empty: Any, data: st.DataObject) -> None:
    history = [
        event for row in data.draw(st.lists(st.sampled_from(TABLE), min_size=1, max_size=4)) for event in row.events
    ]
    in_order, shuffled = make_empty(), make_empty()
    tell(in_order, history)
    order = data.draw(st.permutations(history))
    cut = data.draw(st.integers(0, len(order)))
    tell(shuffled, order[:cut])
    tell(shuffled, order[cut:] + data.draw(st.lists(st.sampled_from(order), max_size=3)))
    assert access(shuffled) == access(in_order) and joins(shuffled) == joins(in_order)
    assert states(shuffled) == states(in_order) and agrees(shuffled)
    removed = {(row["organization_id"], row["user_id"]) for row in rows(shuffled, Membership) if row["deleted_by"]}
    live = {(row["organization_id"], row["user_id"]) for row in rows(shuffled, Membership) if not row["deleted_by"]}
    if (ORG, ANN) in removed - live:
        assert answered(shuffled, EMAIL) != ORG


@pytest.fixture
def make_empty(make_database: Any, request: pytest.FixtureRequest) -> Any:
    """A function that returns an engine of an empty migrated SQLite database."""

    def make() -> Engine:
        engine = open_engine(make_database("sqlite"))
        request.addfinalizer(engine.dispose)
        return engine

    return make


# Who is to be made a member


@pytest.fixture
def provisioning(one_engine: Engine) -> Engine:
    """A filled mirror in mode `provision` with a verified domain; nobody is still to be looked for."""
    tell(one_engine, ON)
    put_in_force(one_engine)
    is_filled(one_engine)
    return one_engine


def searches(engine: Engine) -> list[tuple[Any, ...]]:
    names = ("organization_id", "domain", "created_after", "cause", "cause_id")
    return sorted(tuple(row[name] for name in names) for row in rows(engine, JoinSearch))


def settled(engine: Engine, state: JoinState) -> None:
    """As the worker leaves a join that it is done with."""
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


def test_a_verified_address_on_the_domain_is_to_be_made_a_member(provisioning: Engine) -> None:
    unverified, signed_up, elsewhere = (
        user(id="user_bob", email="bob@acme.example", email_verified=False),
        user(email="Ann@ACME.example"),
        user(id="user_cat", email="cat@elsewhere.example"),
    )
    tell(provisioning, [unverified, signed_up, elsewhere])
    [join] = rows(provisioning, Join)
    assert (join["organization_id"], join["user_id"], join["domain"]) == (ORG, ANN, "acme.example")
    assert (join["state"], join["cause"], join["cause_id"]) == ("pending", "event", signed_up["id"])
    verified = user("updated", 1, id="user_bob", email="bob@acme.example")
    moved = user("updated", 1, id="user_cat", email="cat@acme.example")
    tell(provisioning, [verified, moved])
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
def test_only_a_newly_verified_address_makes_a_dropped_or_failed_join_pending_again(
    provisioning: Engine, state: JoinState, event: JSON, after: str
) -> None:
    tell(provisioning, [user()])
    settled(provisioning, state)
    tell(provisioning, [event])
    [join] = rows(provisioning, Join)
    assert join["state"] == after
    names = ("reason", "error", "attempts", "settled_at", "complete_from", "cause_id")
    if after == "pending":
        assert tuple(join[name] for name in names) == (None, None, 0, None, None, event["id"])
        assert join["due_at"] > NOON
    else:
        assert tuple(join[name] for name in names)[:5] == ("gone", "404", 3, NOON, NOON)


@pytest.mark.parametrize("mode", ["mirror", "off"])
def test_in_other_modes_nobody_is_to_be_made_a_member(one_engine: Engine, mode: str) -> None:
    put_in_force(one_engine, mode)
    tell(one_engine, [*ON, user()])
    assert rows(one_engine, Join) == [] and rows(one_engine, JoinSearch) == []


def test_when_a_domain_begins_to_auto_join_its_people_are_looked_for(provisioning: Engine) -> None:
    assert searches(provisioning) == []
    late = domain(at=5, id="org_domain_2", domain="late.example")
    failing = domain("created", 5, id="org_domain_3", domain="failing.example")
    tell(provisioning, [late, failing, domain(at=5, id="org_domain_0", domain="not a domain")])
    backfill_from = rows(provisioning, Mirror)[0]["backfill_from"]
    verified_at = NOON + timedelta(minutes=5)
    assert searches(provisioning) == [(ORG, "late.example", max(verified_at, backfill_from), "event", late["id"])]


def test_without_the_setting_only_those_are_looked_for_who_came_after_the_verification(provisioning: Engine) -> None:
    in_transaction(provisioning, lambda tx: tx.execute(update(Mirror).values(backfill_from=None)))
    tell(provisioning, [event := domain(at=5, id="org_domain_2", domain="late.example")])
    assert searches(provisioning) == [(ORG, "late.example", NOON + timedelta(minutes=5), "event", event["id"])]


@pytest.mark.parametrize("filled", [True, False])
def test_with_the_setting_everybody_is_looked_for_once_the_mirror_is_filled(one_engine: Engine, filled: bool) -> None:
    put_in_force(one_engine, existing=True)
    if filled:
        is_filled(one_engine)
    tell(one_engine, ON)
    [(*_, created_after, _, cause_id)] = searches(one_engine)
    assert (created_after is None) is filled
    assert cause_id == ON[1]["id"]


def test_a_search_for_everybody_stays_one(provisioning: Engine) -> None:
    put_in_force(provisioning, existing=True)
    tell(provisioning, [domain("deleted", 2), domain(at=3, id="org_domain_2")])
    put_in_force(provisioning, existing=False)
    again = domain(at=5, id="org_domain_3")
    tell(provisioning, [domain("deleted", 4, "org_domain_2"), again])
    assert searches(provisioning) == [(ORG, "acme.example", None, "event", again["id"])]


def test_a_search_leaves_those_of_other_domains_and_workspaces_alone(provisioning: Engine) -> None:
    put_in_force(provisioning, existing=True)
    tell(provisioning, [domain("deleted", 2), domain(at=3, id="org_domain_2")])
    put_in_force(provisioning, existing=False)
    tell(provisioning, [domain(at=4, id="org_domain_3", domain="late.example")])
    tell(provisioning, [domain("deleted", 5, "org_domain_2"), org(id=RIVAL)])
    tell(provisioning, [domain(at=6, id="org_domain_4", organization_id=RIVAL)])
    assert [(owner, name, after is None) for owner, name, after, *_ in searches(provisioning)] == [
        (ORG, "acme.example", True),
        (ORG, "late.example", False),
        (RIVAL, "acme.example", False),
    ]


def test_an_event_about_a_sign_up_counts_before_the_mirror_is_filled(one_engine: Engine) -> None:
    put_in_force(one_engine)
    tell(one_engine, [*ON, user()])
    assert joins_of(one_engine) == {ANN: "pending"}


def test_a_domain_that_stays_verified_begins_no_search(provisioning: Engine) -> None:
    tell(provisioning, [domain("updated", 2, domain="ACME.example")])
    assert history(provisioning, "org_domain_1")[-1] == ("verified", None, "event")
    assert len(history(provisioning, "org_domain_1")) == 2 and searches(provisioning) == []


def test_a_conflict_that_ends_begins_a_search_for_the_one_who_is_left(provisioning: Engine) -> None:
    rival = {"id": "org_domain_2", "organization_id": RIVAL}
    tell(provisioning, [domain(at=2, **rival)])
    assert searches(provisioning) == []
    tell(provisioning, [end := domain("deleted", 3, **rival)])
    assert [(owner, name, cause) for owner, name, _, _, cause in searches(provisioning)] == [
        (ORG, "acme.example", end["id"])
    ]


def test_a_workspace_switched_on_has_its_people_looked_for(provisioning: Engine) -> None:
    put_in_force(provisioning, existing=True)
    other = {"id": "org_domain_2", "organization_id": RIVAL, "domain": "rival.example"}
    tell(provisioning, [org(id=RIVAL), domain(at=2, **other)])
    in_transaction(provisioning, lambda tx: tx.execute(delete(JoinSearch)))
    auto_join_policy.set_workspace(provisioning, ORG, "ann", "wait", auto_join=False)
    assert searches(provisioning) == []
    auto_join_policy.set_workspace(provisioning, ORG, "ann", "go", auto_join=True)
    assert searches(provisioning) == [(ORG, "acme.example", None, "operator", "ann")]


def test_unblocking_creates_one_join_of_that_person_alone(provisioning: Engine) -> None:
    tell(provisioning, [user(), user(id="user_bob", email="bob@acme.example")])
    in_transaction(provisioning, lambda tx: tx.execute(delete(Join)))
    auto_join_policy.block(provisioning, ORG, ANN, "ann", "why")
    auto_join_policy.unblock(provisioning, ORG, ANN, "eve", "over")
    [join] = rows(provisioning, Join)
    assert (join["user_id"], join["state"], join["cause"], join["cause_id"]) == (ANN, "pending", "operator", "eve")


def test_unblocking_creates_no_join_of_a_deleted_or_unverified_person(provisioning: Engine) -> None:
    bob: JSON = {"id": "user_bob", "email": "bob@acme.example"}
    tell(provisioning, [user(email_verified=False), user(**bob)])
    for id in (ANN, "user_bob"):
        auto_join_policy.block(provisioning, ORG, id, "ann", "why")
    tell(provisioning, [user("deleted", 2, **bob)])
    for id in (ANN, "user_bob"):
        auto_join_policy.unblock(provisioning, ORG, id, "eve", "over")
    assert rows(provisioning, Join) == []


def test_events_of_one_batch_each_show_the_state_they_led_to(one_engine: Engine) -> None:
    rival = {"id": "org_domain_2", "organization_id": RIVAL}
    batch = [org(), org(id=RIVAL), domain("created"), domain(at=2), domain(at=1, **rival), org("deleted", 3, RIVAL)]
    tell(one_engine, batch)
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


def test_a_domain_that_changes_its_name_frees_the_old_one(one_engine: Engine) -> None:
    rival = {"id": "org_domain_2", "organization_id": RIVAL}
    tell(one_engine, [*ON, org(id=RIVAL), domain(at=1, **rival)])
    renamed = domain("updated", 2, **rival, domain="rival.example", state="verified")
    tell(one_engine, [renamed])
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


def test_a_renamed_domain_that_stays_verified_is_noted_by_its_new_name(one_engine: Engine) -> None:
    tell(one_engine, [*ON, domain("updated", 2, domain="new.example")])
    tell(one_engine, [domain("updated", 3, domain="newer.example")])
    assert [(row["domain"], row["state"]) for row in rows(one_engine, AutoJoin)] == [("newer.example", "verified")]


def test_the_end_of_a_rivals_workspace_is_the_cause_of_the_new_state(one_engine: Engine) -> None:
    tell(one_engine, [*ON, org(id=RIVAL), domain(at=1, id="org_domain_2", organization_id=RIVAL)])
    unrelated = domain("created", 2, id="org_domain_3", domain="else.example")
    tell(one_engine, [unrelated, end := org("deleted", 2, RIVAL)])
    assert history(one_engine, "org_domain_1")[-1] == ("verified", None, "event")
    last = [row for row in rows(one_engine, Change) if row["object_id"] == "org_domain_1"][-1]
    assert last["cause_id"] == end["id"]


def test_several_rivals_are_named_in_order(one_engine: Engine) -> None:
    rivals = [domain(at=1, id=f"org_domain_{owner}", organization_id=owner) for owner in ("org_z", "org_b")]
    tell(one_engine, [*ON, *rivals])
    assert history(one_engine, "org_domain_1")[-1] == ("conflicted", "also verified by org_b, org_z", "event")


def test_a_workspace_that_is_renamed_changes_no_domain(one_engine: Engine) -> None:
    tell(one_engine, ON)
    tell(one_engine, [made("organization.updated", 3, id=ORG, name="Renamed", domains=[])])
    assert history(one_engine, "org_domain_1") == [("verified", None, "event")]
    assert [row["kind"] for row in rows(one_engine, Change)][-1] == "organization"


# Settings and switches


def test_switched_off_domains_do_not_auto_join_and_have_a_reason(engine: Engine) -> None:
    tell(engine, ON)
    put_in_force(engine, "off")
    assert answered(engine, NEW) is None and reasons(engine) == {"AUTO_JOIN is off"}
    put_in_force(engine, "mirror")
    auto_join_policy.set_workspace(engine, ORG, "ann", "contractors share the domain", auto_join=False)
    assert answered(engine, NEW) is None and reasons(engine) == {"switched off by ann: contractors share the domain"}
    auto_join_policy.set_workspace(engine, ORG, "ann", "over", auto_join=True, default_role="admin")
    with session(engine) as opened:
        assert auto_join_for(opened, NEW) == (ORG, "admin")


def test_settings_of_no_workspace_or_of_nothing_are_refused(engine: Engine) -> None:
    with pytest.raises(UnknownIdError, match="has no workspace org_none"):
        auto_join_policy.set_workspace(engine, "org_none", "ann", "why", auto_join=True)
    with pytest.raises(ConfigurationError, match="nothing to change"):
        auto_join_policy.set_workspace(engine, ORG, "ann", "why")


def test_changes_of_workspace_settings_form_a_chain(engine: Engine) -> None:
    tell(engine, ON)
    for auto_join, why in [(False, "a"), (False, "b"), (False, "b"), (True, "b")]:
        auto_join_policy.set_workspace(engine, ORG, "ann", why, auto_join=auto_join)
    noted = [row for row in rows(engine, Change) if row["kind"] == "workspace_settings"]
    assert [row["after"]["why"] for row in noted] == ["a", "b", "b"]
    assert [row["before"] for row in noted[1:]] == [row["after"] for row in noted[:-1]]
    assert {frozenset(shown) for row in noted for shown in (row["before"], row["after"])} == {
        frozenset({"auto_join", "default_role", "why"})
    }


def test_what_operators_decide_about_a_person_is_a_chain_for_each_workspace(engine: Engine) -> None:
    tell(engine, [*IN, org(id=RIVAL), member("deleted", 2)])
    auto_join_policy.unblock(engine, ORG, ANN, "bob", "hired again")
    auto_join_policy.block(engine, RIVAL, ANN, "bob", "a")
    for why in ("a", "a", "b"):
        auto_join_policy.block(engine, ORG, ANN, "bob", why)
    auto_join_policy.unblock(engine, ORG, ANN, "ann", "over")
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


def test_a_workspace_without_an_admin_is_reported(engine: Engine) -> None:
    tell(engine, [*BOTH, member(role="admin")])
    assert auto_join_policy.without_admin(engine) == []
    tell(engine, [member("updated", 2)])
    assert [(row["organization_id"], row["members"]) for row in auto_join_policy.without_admin(engine)] == [(ORG, 1)]
    auto_join_policy.refresh_counts(engine)
    assert rows(engine, Mirror)[0]["without_admin"] == 1
