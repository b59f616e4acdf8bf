"""Events to snapshots: odd, missing and new is taken; what is needed and not there is named."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.access import normalize_domain
from models.tables import CONTENT, Kind
from tests.support import JSON, made, sample
from worker.decision.decide import DATE_STEP, State, Version
from worker.decision.handlers import HANDLERS, read_event, read_object
from worker.decision.payload import EPOCH, MAX_EMAIL, MAX_TEXT, Snapshot, clean, is_id, parse_json, parse_time
from worker.decision.roles import DEFAULT_ROLE_MAP, local_role, slug_for
from worker.errors import PayloadError

ACTED_ON = sorted(HANDLERS)
LIVE = sorted(type for type in ACTED_ON if not type.endswith(".deleted"))
DELETES = sorted(set(ACTED_ON) - set(LIVE))
ROLES = DEFAULT_ROLE_MAP | {"owner": "admin"}


def read(event: JSON) -> Snapshot:
    _, snapshot = read_event(event["id"], event["event"], json.dumps(event).encode(), ROLES)
    assert snapshot is not None
    return snapshot


def content(type: str, **data: Any) -> Any:
    return read(made(type, **data)).state.content


def refused(event: JSON) -> PayloadError:
    with pytest.raises(PayloadError) as caught:
        read(event)
    return caught.value


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("2021-06-25T19:07:33.155Z", datetime(2021, 6, 25, 19, 7, 33, 155_000, UTC)),
        ("2023-04-28 20:05:31.093", datetime(2023, 4, 28, 20, 5, 31, 93_000, UTC)),
        ("2023-04-28T20:05:31", datetime(2023, 4, 28, 20, 5, 31, 0, UTC)),
        ("2023-04-28T22:05:31+02:00", datetime(2023, 4, 28, 20, 5, 31, 0, UTC)),
        ("2023-04-28", datetime(2023, 4, 28, tzinfo=UTC)),
        ("0001-01-01T00:00:00+01:00", None),
        ("9999-12-31T23:59:59-01:00", None),
        ("10000-01-01T00:00:00Z", None),
        ("2023-02-30T00:00:00Z", None),
        ("yesterday", None),
        ("\ud800", None),
        ("", None),
        (None, None),
        (1_750_880_000, None),
        (True, None),
        ([], None),
    ],
)
def test_times_are_instants_in_utc_or_none(text: object, at: datetime | None) -> None:
    found = parse_time(text)
    assert found == at
    assert found is None or found.utcoffset() == timedelta(0)


def test_a_time_is_the_same_whatever_the_zone_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        found = [parse_time(text) for text in ("2023-04-28T20:05:31", "2023-04-28T22:05:31+02:00")]
    time.tzset()
    assert found == [datetime(2023, 4, 28, 20, 5, 31, tzinfo=UTC)] * 2
    assert [at.utcoffset() for at in found if at] == [timedelta(0)] * 2


@pytest.mark.parametrize("type", LIVE)
@pytest.mark.parametrize("wrong", [None, "soon", 17, "9999-12-31T23:59:59-01:00"])
def test_without_a_time_to_order_by_an_event_is_refused_by_name(type: str, wrong: object) -> None:
    event = made(type, updated_at=wrong)
    if type.partition(".")[0].endswith("role"):
        read(event)  # a role is ordered by its event's own time
    else:
        assert refused(event).field.endswith(".updated_at")
    assert refused(made(type) | {"created_at": wrong}).field == "created_at"


@pytest.mark.parametrize("wrong", [None, "", 17, ["id"], {"id": "x"}, "a" * 256, "é", "a\0", "\ud800", "a\nb"])
@pytest.mark.parametrize("type", ACTED_ON)
def test_without_a_usable_id_an_event_is_refused_by_name(type: str, wrong: object) -> None:
    name = "slug" if type.partition(".")[0].endswith("role") else "id"
    path = "data.organization_domain" if type.endswith("verification_failed") else "data"
    assert refused(made(type, **JSON({name: wrong}))).field == f"{path}.{name}"


@pytest.mark.parametrize(
    ("type", "parent"),
    [
        ("organization_membership.created", "organization_id"),
        ("organization_membership.created", "user_id"),
        ("organization_domain.created", "organization_id"),
    ],
)
def test_a_child_names_its_parents(type: str, parent: str) -> None:
    assert str(refused(made(type, **JSON({parent: None})))) == f"data.{parent}: is missing"
    assert str(refused(made(type, **JSON({parent: 7})))) == f"data.{parent}: is not a string"


@pytest.mark.parametrize("type", DELETES)
def test_a_delete_needs_nothing_but_the_id(type: str) -> None:
    role = type.partition(".")[0].endswith("role")
    bare: JSON = {"id": "event_1", "data": {"slug" if role else "id": "x"}, "created_at": "2025-07-01T00:00:00Z"}
    if not role:
        del bare["created_at"]
    snapshot = read(bare | {"event": type})
    assert (snapshot.id, snapshot.state.deleted) == ("x", True)


@pytest.mark.parametrize("data", [None, [], "x", 7, True])
@pytest.mark.parametrize("type", ACTED_ON)
def test_data_that_is_no_object_is_refused(type: str, data: object) -> None:
    assert refused(sample(type) | {"data": data}).field.startswith("data")


@pytest.mark.parametrize("body", [b"", b"x", b"\xff", b"[" * 100_000, b"[]", b"null", b"1" * 5000])
def test_a_body_that_is_no_event_is_refused(body: bytes) -> None:
    with pytest.raises(PayloadError, match="body"):
        read_event("event_1", "user.created", body, ROLES)


@pytest.mark.parametrize("type", LIVE)
def test_an_object_stripped_to_what_is_needed_is_taken(type: str) -> None:
    event = made(type)
    needed = {"id", "slug", "updated_at", "organization_id", "user_id"}
    target = event["data"].get("organization_domain", event["data"])
    for name in set(target) - needed:
        del target[name]
    assert not read(event).state.deleted


@pytest.mark.parametrize("odd", [None, 7, True, [], {}, "NEW_VALUE"])
@pytest.mark.parametrize("type", LIVE)
def test_odd_values_where_nothing_is_needed_do_no_harm(type: str, odd: object) -> None:
    event = made(type)
    needed = {"id", "slug", "updated_at", "organization_id", "user_id"}
    target = event["data"].get("organization_domain", event["data"])
    target |= dict.fromkeys(set(target) - needed, odd)
    found = read(event).state.content
    assert found.get("email_verified", False) is found.get("directory_managed", False) is False or odd is True
    assert found.get("role", "member") == "member"
    assert found.get("verification") not in {"verified", "legacy_verified"}


ORG = "org_01JYM8M9F7BH9CXMR0Y7HNBNAP"
CONTENTS: dict[str, tuple[Kind, str, JSON]] = {
    "organization.created": (Kind.ORGANIZATION, ORG, {"name": "Acme Rockets", "external_id": "workspace_17"}),
    "user.updated": (
        Kind.USER,
        "user_01JYM9EKHBBH9CXW8DYAZ27TDB",
        {"email": "ada.hopper@acme.example", "email_verified": True, "first_name": "Ada", "last_name": "Hopper"},
    ),
    "organization_membership.created": (
        Kind.MEMBERSHIP,
        "om_01JYM9VRJDBH9CY1SVZ89HE5RM",
        {
            "organization_id": ORG,
            "user_id": "user_01JYM9EKHBBH9CXW8DYAZ27TDB",
            "status": "pending",
            "workos_roles": ["member"],
            "workos_role": "member",
            "role": "member",
            "directory_managed": True,
        },
    ),
    "organization_domain.verified": (
        Kind.DOMAIN,
        "org_domain_01JYM91EG9BH9CXSHRSD5658BA",
        {
            "organization_id": ORG,
            "domain": "ACME.example",
            "normalized": "acme.example",
            "verification": "verified",
            "reason": None,
        },
    ),
    "connection.activated": (
        Kind.CONNECTION,
        "conn_01JYMDZAX1BH9CZ031TFXF1D42",
        {
            "organization_id": ORG,
            "name": "Acme sign-in",
            "connection_type": "OktaSAML",
            "status": "active",
            "domains": ["acme.example"],
        },
    ),
    "organization_role.updated": (
        Kind.ROLE,
        f"{ORG}/org-support",
        {
            "organization_id": ORG,
            "slug": "org-support",
            "name": "Support",
            "description": "Answers customers",
            "permissions": ["tickets:read", "tickets:write"],
        },
    ),
    "role.updated": (
        Kind.ROLE,
        "billing",
        {
            "organization_id": None,
            "slug": "billing",
            "name": None,
            "description": None,
            "permissions": ["invoices:read"],
        },
    ),
}
"""An event, and what the snapshot of it holds beside its times."""
CHANGED: dict[str, JSON] = {
    "organization_membership.created": {"directory_managed": True},
    "organization_domain.verified": {"domain": "ACME.example"},
}
CREATED, UPDATED = datetime(2025, 1, 2, tzinfo=UTC), datetime(2025, 3, 4, tzinfo=UTC)
TIMES: JSON = {"created_at": "2025-01-02", "updated_at": "2025-03-04"}


@pytest.mark.parametrize("type", CONTENTS)
def test_an_object_is_read_whole_from_its_event(type: str) -> None:
    event = made(type, 7, **TIMES | CHANGED.get(type, {}))
    kind, id, expected = CONTENTS[type]
    event_at = datetime.fromisoformat(event["created_at"])
    version = Version(event_at if kind is Kind.ROLE else UPDATED, event_at, event["id"])
    assert read(event) == Snapshot(kind, id, State(version, deleted=False, content=expected | {"created_at": CREATED}))
    del event["data"]["created_at"]
    assert read(event).state.content["created_at"] == version.updated_at


@pytest.mark.parametrize("type", CONTENTS)
def test_an_object_is_read_whole_from_the_api(type: str) -> None:
    event = made(type, 7, **TIMES | CHANGED.get(type, {}))
    kind, id, expected = CONTENTS[type]
    read_at = datetime(2025, 7, 1, 12, 0, 5, tzinfo=UTC)
    version = Version(UPDATED, UPDATED if kind is Kind.ROLE else read_at + DATE_STEP, "")
    state = State(version, deleted=False, content=expected | {"created_at": CREATED})
    assert read_object(kind, event["data"], read_at, ROLES) == Snapshot(kind, id, state)


def test_why_a_domain_failed_is_not_read_from_the_api() -> None:
    item = made("organization_domain.created", state="failed")["data"]
    found = read_object(Kind.DOMAIN, item, UPDATED, ROLES).state.content
    assert found["verification"] == "failed" and "reason" not in found


def test_an_object_of_the_api_that_cannot_be_used_is_refused_by_its_kind() -> None:
    with pytest.raises(PayloadError, match=r"^user: is not an object$"):
        read_object(Kind.USER, [], UPDATED, ROLES)
    with pytest.raises(PayloadError, match=r"^membership\.updated_at: is missing$"):
        read_object(Kind.MEMBERSHIP, {"id": "om_1", "organization_id": "org_1", "user_id": "user_1"}, UPDATED, ROLES)


@pytest.mark.parametrize("type", DELETES)
def test_a_delete_keeps_what_it_tells_and_does_without_the_rest(type: str) -> None:
    kind = read(made(type)).kind
    live_type = next(live for live in LIVE if live.partition(".")[0] == type.partition(".")[0])
    event = made(type, 7, **made(live_type)["data"] | TIMES)
    snapshot, as_live = read(event), read(event | {"event": live_type})
    assert (snapshot.kind, snapshot.id) == (as_live.kind, as_live.id)
    assert snapshot.state == replace(as_live.state, deleted=True)
    if kind is not Kind.ROLE:
        bare = {"id": "event_1", "event": type, "data": {"id": "x"}}
        assert read(bare).state.version == Version(EPOCH, EPOCH, "event_1")
        assert read(bare).state.content["created_at"] == EPOCH


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (sample("user.created") | {"data": 7}, "data: is not an object"),
        (sample("user.created") | {"created_at": "soon"}, "created_at: is missing or not a time"),
        (sample("role.created") | {"created_at": None}, "created_at: is missing or not a time"),
        (made("user.created", id=None), "data.id: is missing"),
        (made("user.created", id=""), "data.id: is missing"),
        (made("user.created", id=7), "data.id: is not a string"),
        (made("user.created", id="\n"), "data.id: is not an id"),
        (made("user.created", updated_at=None), "data.updated_at: is missing"),
        (made("user.created", updated_at="soon"), "data.updated_at: is not a time"),
        (made("role.created", slug=7), "data.slug: is not a string"),
        (
            made("organization_domain.verification_failed", id=7),
            "data.organization_domain.id: is not a string",
        ),
    ],
)
def test_a_refusal_says_which_field_and_what_is_wrong_with_it(event: JSON, message: str) -> None:
    assert str(refused(event)) == message


@pytest.mark.parametrize(("body", "message"), [(b"{", "body: is not JSON"), (b"[]", "body: is not an object")])
def test_a_refused_body_says_what_is_wrong_with_it(body: bytes, message: str) -> None:
    with pytest.raises(PayloadError, match=f"^{message}$"):
        read_event("event_1", "user.created", body, ROLES)


@pytest.mark.parametrize("odd", [None, "", 7, "\u00e9", "a" * 256])
def test_a_parent_that_is_not_needed_and_no_id_is_none(odd: object) -> None:
    assert content("connection.activated", organization_id=odd)["organization_id"] is None


def test_a_role_of_the_environment_has_no_name_of_its_own() -> None:
    found = content("role.updated", name="Billing", description="Pays")
    assert (found["name"], found["description"]) == (None, None)


def test_lists_are_sorted_without_duplicates_and_hold_only_text() -> None:
    permissions = ["b", 7, "a", "b", None, ["c"]]
    assert content("role.updated", permissions=permissions)["permissions"] == ["a", "b"]
    domains = [{"domain": "b.example"}, {"domain": 7}, "c.example", {"domain": "a.example"}, {"id": "x"}]
    assert content("connection.activated", domains=domains)["domains"] == ["a.example", "b.example"]
    odd = [{"domain": "a\0.example"}]
    assert content("connection.activated", domains=odd)["domains"] == ["a\ufffd.example"]


def test_the_slug_for_a_local_role_is_its_own_name_or_the_first_that_maps_to_it() -> None:
    assert slug_for("admin", {"a_boss": "admin", "admin": "admin"}) == "admin"
    assert slug_for("admin", {"owner": "admin", "boss": "admin", "member": "member"}) == "boss"
    assert slug_for("admin", {"admin": "member", "owner": "admin"}) == "owner"
    assert slug_for("admin", {"member": "member"}) is None


def test_a_failed_verification_is_read_from_its_nested_object() -> None:
    snapshot = read(sample("organization_domain.verification_failed"))
    assert (snapshot.kind, snapshot.id) == (Kind.DOMAIN, "org_domain_01JYM91EG9BH9CXSHRSD5658BA")
    assert snapshot.state.content["reason"] == "domain_verification_period_expired"
    assert content("organization_domain.verification_failed", state="verified")["verification"] == "failed"


def test_a_failed_verification_that_is_flat_is_refused() -> None:
    event = sample("organization_domain.verification_failed")
    event["data"] |= event["data"].pop("organization_domain")
    assert refused(event).field == "data.organization_domain"


@pytest.mark.parametrize(
    ("role", "roles", "slugs", "decides", "local"),
    [
        ({"slug": "admin"}, None, ["admin"], "admin", "admin"),
        ("admin", None, ["admin"], "admin", "admin"),
        ({"slug": "member"}, [{"slug": "member"}, {"slug": "admin"}], ["admin", "member"], "admin", "admin"),
        (None, [{"slug": "owner"}], ["owner"], "owner", "admin"),
        (None, ["owner", "member"], ["member", "owner"], "owner", "admin"),
        ({"slug": "auditor"}, [{"slug": "auditor"}], ["auditor"], "auditor", "member"),
        ({"slug": "Admin"}, None, ["Admin"], "Admin", "member"),
        (None, None, [], None, "member"),
        ({}, {}, [], None, "member"),
        ({"slug": None}, [{"slug": 7}, None, 7, [], {"name": "admin"}], [], None, "member"),
        (["admin"], "admin", [], None, "member"),
        ({"slug": ""}, [], [], None, "member"),
    ],
)
def test_roles_as_object_text_list_or_missing(
    role: object, roles: object, slugs: list[str], decides: str | None, local: str
) -> None:
    found = content("organization_membership.created", role=role, roles=roles)
    assert (found["workos_roles"], found["workos_role"], found["role"]) == (slugs, decides, local)


def test_the_highest_of_several_roles_wins_and_an_unknown_one_grants_least() -> None:
    assert local_role(["member", "admin", "auditor"], ROLES) == ("admin", "admin")
    assert local_role(["owner", "admin"], ROLES) == local_role(["admin", "owner"], ROLES) == ("admin", "admin")
    assert local_role(["auditor"], ROLES) == ("auditor", "member")
    assert local_role(["admin"], {}) == ("admin", "member")
    assert local_role([], ROLES) == (None, "member")


def test_text_is_made_fit_for_every_database() -> None:
    assert clean("a\0b\ud800c") == "a\ufffdb?c"
    assert clean("x" * (MAX_TEXT + 1)) == "x" * MAX_TEXT
    assert content("user.created", first_name="\ud83d\ude00\0")["first_name"].encode()


def test_an_address_longer_than_any_mailbox_is_none_and_not_another() -> None:
    domain = "@acme.example"
    longest = "a" * (MAX_EMAIL - len(domain)) + domain
    assert content("user.created", email=longest)["email"] == longest
    assert content("user.created", email="a" + longest)["email"] is None


@pytest.mark.parametrize("value", ["true", 1, "yes", None, [True]])
def test_only_true_itself_is_true(value: object) -> None:
    assert content("user.created", email_verified=value)["email_verified"] is False
    assert content("user.created", email_verified=True)["email_verified"] is True


@pytest.mark.parametrize(
    ("domain", "normal"),
    [
        ("acme.example", "acme.example"),
        ("ACME.Example.", "acme.example"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER.example", "xn--bcher-kva.example"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("faß.example", "xn--fa-hia.example"),
        ("acme。example", "acme.example"),
        ("localhost", None),
        ("", None),
        (".", None),
        (None, None),
        ("a..example", None),
        ("a b.example", None),
        ("-a.example", None),
        ("a_b.example", None),
        ("x" * 64 + ".example", None),
        (".".join(["x" * 60] * 5), None),
        ("acme.example/path", None),
        ("\ud800.example", None),
        ("\0.example", None),
    ],
)
def test_domains_are_compared_in_one_form(domain: str | None, normal: str | None) -> None:
    assert normalize_domain(domain) == normal


def test_versions_come_from_the_object_and_for_roles_from_the_event() -> None:
    event = sample("user.updated")
    updated_at, event_at = (datetime.fromisoformat(at) for at in (event["data"]["updated_at"], event["created_at"]))
    assert read(event).state.version == Version(updated_at, event_at, event["id"])
    role = made("role.updated", 9, updated_at="2020-01-01T00:00:00Z")
    at = datetime.fromisoformat(role["created_at"])
    assert read(role).state.version == Version(at, at, role["id"])


def test_a_type_nobody_acts_on_brings_no_snapshot() -> None:
    envelope, snapshot = read_event("event_1", "something.new", b'{"created_at": "2025-07-01"}', ROLES)
    assert (envelope.id, snapshot) == ("event_1", None)
    assert read_event("event_1", "dsync.activated", b'{"data": 7}', ROLES)[1] is None


# Anything JSON can say, lone surrogates and NUL included; and what is nearly right, to get deep into the handlers.
texts = st.text(st.characters(), max_size=6) | st.sampled_from(
    ["org_1", "user_1", "admin", "active", "verified", "acme.example", "2025-07-01T00:00:00Z", "2025-07-01 00:00:00"]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
FIELDS = sorted({name for contents in CONTENT.values() for name in contents} | {"id", "updated_at", "state", "roles"})
objects = st.dictionaries(st.sampled_from(FIELDS), values, max_size=8)
instants = st.sampled_from(["2025-07-01T00:00:00Z", "2025-07-01 00:00:00"])
nearly_right = st.builds(
    lambda wild, at: {"id": "x", "slug": "x", "organization_id": "org_1", "user_id": "user_1", "updated_at": at} | wild,
    objects,
    instants,
)


@pytest.mark.parametrize("type", HANDLERS)
@given(data=values | objects | nearly_right, created_at=values | instants, nest=st.booleans())
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_the_data_an_event_is_read_or_refused(type: str, data: Any, created_at: Any, nest: bool) -> None:
    if nest or type.endswith("verification_failed"):
        data = {"organization_domain": data, "reason": data}
    body = json.dumps({"id": "event_1", "event": type, "data": data, "created_at": created_at}).encode()
    try:
        _, snapshot = read_event("event_1", type, body, ROLES)
    except PayloadError:
        return
    if snapshot is not None:
        check_storable(snapshot.kind, snapshot.state)
        assert snapshot.id


def check_storable(kind: Kind, state: State) -> None:
    assert set(state.content) == set(CONTENT[kind])
    times = [value for value in state.content.values() if isinstance(value, datetime)]
    for instant in (state.version.updated_at, state.version.event_at, *times):
        assert instant.utcoffset() == timedelta(0)
    for value in state.content.values():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, str):
                item.encode()
                assert "\0" not in item and len(item) <= MAX_TEXT


@pytest.mark.parametrize(
    ("value", "good"), [("event_1", True), ("evt 1", True), ("", False), ("x" * 255, True), ("x" * 256, False)]
)
def test_ids_are_printable_and_not_endless(value: str, good: bool) -> None:
    assert is_id(value) is good


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters()), inner, max_size=3),
    max_leaves=12,
)


@given(
    value=JSON_VALUES, escaped=st.booleans(), coding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16-le", "utf-32-be"])
)
@settings(deadline=None, max_examples=300)
def test_json_is_read_as_pythons_own_parser_reads_it(value: Any, escaped: bool, coding: str) -> None:
    body = json.dumps(value, ensure_ascii=escaped).encode(coding, "surrogatepass")
    assert outcome(parse_json, body) == outcome(json.loads, body)


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"a": 1, "a": 2}', b"NaN", b"[1,]", b"\xff", b"[" * 100_000, b" 1 ", b"1e999"]
)
def test_odd_json_too(body: bytes) -> None:
    assert outcome(parse_json, body) == outcome(json.loads, body)


def outcome(parse: Callable[[bytes], Any], body: bytes) -> str:
    """What came of it, as text: NaN is not equal to itself."""
    try:
        return repr(parse(body))
    except (ValueError, RecursionError):
        return "refused"
