"""Access and auto-join after histories of events, as the Python contract reports them."""

import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine

from models.database import open_engine
from models.tables import AutoJoin
from models.views import auto_join_domains
from tests.support import JSON, access, joins, rows
from tests.support.auto_join import apply_events
from tests.support.auto_join_events import (
    ANN,
    BOTH,
    EMAIL,
    IN,
    NEW,
    ON,
    ORG,
    RIVAL,
    answered,
    domain,
    failed,
    member,
    org,
    reasons,
    states,
    user,
)
from tests.support.resync import Clock, empty
from worker.kinds.membership import Membership
from worker.kinds.user import User


class Row(NamedTuple):
    """A history and its result: Ann's role, the workspace that `email` auto-joins, and one of the reasons."""

    name: str
    events: Sequence[JSON]
    role: str | None
    joins: str | None
    why: str
    email: str = NEW


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
        "in conflict: also verified by org_rival (org_rival)",
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


def test_history_names_are_unique() -> None:
    assert len({row.name for row in TABLE}) == len(TABLE) >= 40


def check_result(engine: Engine, row: Row) -> None:
    """Check the result after a row's history."""
    assert {role for _, who, role in access(engine) if who == ANN} == ({row.role} if row.role else set()), row.name
    assert answered(engine, row.email) == row.joins, row.name
    assert row.why in reasons(engine), row.name


@pytest.mark.parametrize("row", TABLE, ids=[row.name for row in TABLE])
def test_history_ends_in_expected_access(one_engine: Engine, row: Row) -> None:
    for event in row.events:
        apply_events(one_engine, [event])
    check_result(one_engine, row)


def test_reversed_histories_end_in_expected_access(one_engine: Engine) -> None:
    for row in TABLE:
        apply_events(one_engine, reversed(row.events))
        check_result(one_engine, row)
        empty(one_engine, Clock())


def test_histories_end_in_expected_access_on_postgresql(make_database: Any) -> None:
    """All histories use one database: creating 64 takes too long."""
    engine = open_engine(make_database("postgresql"))
    for row in TABLE:
        for event in row.events:
            apply_events(engine, [event])
        check_result(engine, row)
        empty(engine, Clock())
    engine.dispose()


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
def test_conflicting_claims_never_auto_join_in_any_order(make_database: Any) -> None:
    """Every order of five events about one domain, each order with its own ids in one database."""
    engine = open_engine(make_database("postgresql"))
    tried = 0
    for number, order in enumerate(itertools.permutations(FIGHT)):
        history = json.dumps([FIGHT[name] for name in order])
        for old in ("org_domain_1", "org_domain_2", "acme.example"):
            history = history.replace(old, f"n{number}-{old}")
        events = json.loads(history)
        apply_events(engine, [org(), org(id=RIVAL)])
        done: set[str] = set()
        for name, event in zip(order, events, strict=True):
            apply_events(engine, [event | {"id": f"event_{number}_{name.replace(' ', '_')}"}])
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


@pytest.fixture
def two_engines(make_database: Any) -> Iterator[list[Engine]]:
    """Engines of two SQLite databases."""
    engines = [open_engine(make_database("sqlite")) for _ in range(2)]
    yield engines
    for engine in engines:
        engine.dispose()


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_shuffled_histories_end_in_same_access(two_engines: list[Engine], data: st.DataObject) -> None:
    history = [
        event for row in data.draw(st.lists(st.sampled_from(TABLE), min_size=1, max_size=4)) for event in row.events
    ]
    for engine in two_engines:
        empty(engine, Clock())
    in_order, shuffled = two_engines
    apply_events(in_order, history)
    order = data.draw(st.permutations(history))
    cut = data.draw(st.integers(0, len(order)))
    apply_events(shuffled, order[:cut])
    apply_events(shuffled, order[cut:] + data.draw(st.lists(st.sampled_from(order), max_size=3)))
    assert access(shuffled) == access(in_order) and joins(shuffled) == joins(in_order)
    assert states(shuffled) == states(in_order) and agrees(shuffled)
    removed = {(row["organization_id"], row["user_id"]) for row in rows(shuffled, Membership) if row["deleted_by"]}
    live = {(row["organization_id"], row["user_id"]) for row in rows(shuffled, Membership) if not row["deleted_by"]}
    # The deletion of a user deletes the memberships too: then nobody removed the person.
    user_deleted = any(row["id"] == ANN and row["deleted_by"] for row in rows(shuffled, User))
    if (ORG, ANN) in removed - live and not user_deleted:
        assert answered(shuffled, EMAIL) != ORG
