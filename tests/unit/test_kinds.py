"""Kinds of objects: their declarations, and how payloads become snapshots.

Missing optional fields and unknown values are accepted. The error for a missing required field names the field.
"""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.addresses import normalize_domain
from tests.support import JSON, made, sample
from tests.support.snapshots import DELETES, ROLES, content, read, refused
from worker.decision.decide import State, Version
from worker.decision.payload import MAX_EMAIL, MAX_ID_LENGTH, MAX_TEXT, clean, is_id, parse_json, parse_time
from worker.decision.roles import local_role
from worker.errors import PayloadError
from worker.kinds import KINDS, LISTINGS, READERS, Kind, read_event, read_object
from worker.kinds.kind import Frequency

UNUSABLE: tuple[object, ...] = (None, 7, True, [], {}, "NEW_VALUE")
READ_AT = datetime(2025, 7, 2, tzinfo=UTC)
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=str)
each_read_kind = pytest.mark.parametrize("kind", [kind for kind in KINDS.values() if kind.read_path("id_1")], ids=str)
"""Kinds that WorkOS's API shows. Their events contain the object itself."""


def live_types(kind: Kind) -> list[str]:
    return sorted(set(kind.events) - set(DELETES))


def object_in(event: JSON) -> JSON:
    """The object that an event is about; one type nests it."""
    found: JSON = event["data"].get("organization_domain", event["data"])
    return found


# The registry


def test_parents_come_before_their_children() -> None:
    assert list(KINDS) == [
        "organization",
        "permission",
        "user",
        "connection",
        "domain",
        "invitation",
        "membership",
        "role",
        "saml_certificate",
    ]


@each_kind
def test_the_declarations_of_a_kind_are_consistent(kind: Kind) -> None:
    columns = kind.table.__table__.c
    assert set(kind.columns) | set(kind.derive({})) <= set(columns.keys())
    assert KINDS[kind.name] is kind and str(kind) == kind.name
    assert all(READERS[type][0] is kind for type in kind.events)
    assert all(LISTINGS[listing.name] == (kind, listing) for listing in kind.listings)
    assert all(parent in KINDS and column in kind.columns for column, parent in kind.parents.items())


@each_read_kind
def test_a_kind_that_is_read_is_also_listed(kind: Kind) -> None:
    assert kind.shown_by and all(by.listing in LISTINGS for by in kind.shown_by)
    assert len(kind.read_path("id_1")) > 1 and kind.read_path("id_1")[-1] == "id_1"


def test_a_role_is_read_by_its_slug_and_the_organization_that_owns_it() -> None:
    assert KINDS["role"].read_path("admin") == ("authorization", "roles", "admin")
    own = ("authorization", "organizations", "org_1", "roles", "admin")
    assert KINDS["role"].read_path("org_1/admin") == own


def test_listings_of_a_resync() -> None:
    scopes = {name: listing.full_resync for name, (_, listing) in LISTINGS.items()}
    assert scopes == {
        "organizations": Frequency.ONCE,
        "organization": Frequency.NEVER,
        "users": Frequency.ONCE,
        "roles": Frequency.ONCE,
        "permissions": Frequency.ONCE,
        "connections": Frequency.ONCE,
        "invitations": Frequency.ONCE,
        "memberships": Frequency.EACH_ORGANIZATION,
        "organization_roles": Frequency.ORGANIZATIONS_WITH_ROLES,
    }
    of_one = {name for name, (_, listing) in LISTINGS.items() if listing.workspace_resync}
    assert of_one == {"organization", "memberships", "connections", "invitations"}
    optional = {name for name, (_, listing) in LISTINGS.items() if not listing.required}
    assert optional == {"connections", "invitations", "permissions"}


# Required fields


@each_kind
def test_an_event_without_a_time_is_refused_by_field(kind: Kind) -> None:
    for type in live_types(kind):
        for wrong in (None, "soon", 17, "9999-12-31T23:59:59-01:00"):
            assert refused(made(type) | {"created_at": wrong}).field == "created_at"
            event = made(type, updated_at=wrong)
            if kind.delete_is_final:
                assert refused(event).field.endswith(".updated_at")
            else:
                read(event)  # is ordered by its event's own time


@each_read_kind
def test_an_object_with_only_the_required_fields_is_accepted(kind: Kind) -> None:
    for type in live_types(kind):
        event = made(type)
        data = object_in(event)
        for name in set(data) - {kind.id_field, "updated_at", *kind.parents, "organization_id"}:
            del data[name]
        assert not read(event).state.deleted


def with_optional_fields(kind: Kind, type: str, value: object) -> JSON:
    """A sample event whose optional fields all contain `value`."""
    event = made(type)
    data = object_in(event)
    data |= dict.fromkeys(set(data) - {kind.id_field, "updated_at", *kind.parents, "organization_id"}, value)
    return event


@each_read_kind
def test_unusable_values_in_optional_fields_are_accepted(kind: Kind) -> None:
    for type in live_types(kind):
        for unusable in UNUSABLE:
            assert not read(with_optional_fields(kind, type, unusable)).state.deleted


@pytest.mark.parametrize(
    ("kind", "column", "granting"),
    [
        ("user", "email_verified", True),
        ("membership", "status", "active"),
        ("membership", "role", "admin"),
        ("membership", "directory_managed", True),
        ("domain", "verification", "verified"),
        ("domain", "verification", "legacy_verified"),
        ("connection", "status", "active"),
        ("permission", "system", True),
    ],
)
def test_unusable_values_in_optional_fields_grant_nothing(kind: str, column: str, granting: object) -> None:
    for type in live_types(KINDS[kind]):
        for unusable in UNUSABLE:
            if unusable is not granting:
                assert read(with_optional_fields(KINDS[kind], type, unusable)).state.content[column] != granting


@pytest.mark.parametrize("type", DELETES)
def test_a_delete_requires_only_the_id_and_for_slugs_the_time(type: str) -> None:
    kind, _ = READERS[type]
    bare: JSON = {"id": "event_1", "event": type, "data": {kind.id_field: "x"}}
    if not kind.delete_is_final:
        assert refused(bare).field == "created_at"
        bare["created_at"] = "2025-07-01T00:00:00Z"
    snapshot = read(bare)
    assert (snapshot.kind, snapshot.id, snapshot.state.deleted) == (kind, "x", True)


@pytest.mark.parametrize("wrong", [None, "", 17, ["id"], "a" * 256, "é", "a\0", "a/b"])
def test_an_event_without_a_usable_id_is_refused_by_field(wrong: object) -> None:
    for type in (type for type, (kind, _) in READERS.items() if kind.read_path("id_1")):
        kind = READERS[type][0]
        path = "data.organization_domain" if type.endswith("verification_failed") else "data"
        assert refused(made(type, **JSON({kind.id_field: wrong}))).field == f"{path}.{kind.id_field}"


@pytest.mark.parametrize(
    ("type", "parent"),
    [
        ("organization_membership.created", "organization_id"),
        ("organization_membership.created", "user_id"),
        ("organization_domain.created", "organization_id"),
    ],
)
def test_a_child_requires_the_ids_of_its_parents(type: str, parent: str) -> None:
    assert str(refused(made(type, **JSON({parent: None})))) == f"data.{parent}: is missing"
    assert str(refused(made(type, **JSON({parent: 7})))) == f"data.{parent}: is not a string"


def test_a_role_with_an_invalid_organization_is_refused() -> None:
    assert refused(made("organization_role.updated", organization_id=7)).field == "data.organization_id"
    assert refused(made("organization_role.deleted", organization_id="a/b")).field == "data.organization_id"


def test_data_that_is_not_an_object_is_refused() -> None:
    for data in (None, "x", 7, True):
        assert all(refused(sample(type) | {"data": data}).field.startswith("data") for type in READERS)


def test_a_body_that_is_not_an_event_is_refused() -> None:
    for body in (b"", b"x", b"\xff", b"[" * 100_000, b"[]", b"null"):
        with pytest.raises(PayloadError, match="body"):
            read_event("event_1", "user.created", body, ROLES)


def test_an_event_of_another_type_has_no_snapshot() -> None:
    envelope, snapshot = read_event("event_1", "something.new", b'{"created_at": "2025-07-01"}', ROLES)
    assert (envelope.id, snapshot) == ("event_1", None)
    assert read_event("event_1", "dsync.activated", b'{"data": 7}', ROLES)[1] is None


# Contents


def test_versions_come_from_the_object_and_for_slugs_from_the_event() -> None:
    event = sample("user.updated")
    updated_at, event_at = (datetime.fromisoformat(at) for at in (event["data"]["updated_at"], event["created_at"]))
    assert read(event).state.version == Version(updated_at, event_at, event["id"])
    for type in ("role.updated", "permission.updated"):
        by_slug = made(type, 9, updated_at="2020-01-01T00:00:00Z")
        at = datetime.fromisoformat(by_slug["created_at"])
        assert read(by_slug).state.version == Version(at, at, by_slug["id"])


@pytest.mark.parametrize(
    ("part", "field"), [("connection", "id"), ("certificate", "certificate_type"), ("certificate", "expiry_date")]
)
def test_a_certificate_without_a_required_field_is_refused(part: str, field: str) -> None:
    for wrong in (None, 7, "\u00e9"):
        event = sample("connection.saml_certificate_renewed")
        event["data"][part][field] = wrong
        assert refused(event).field.endswith(f"{part}.{field}")


def test_a_failed_verification_is_read_from_its_nested_object() -> None:
    snapshot = read(sample("organization_domain.verification_failed"))
    assert (snapshot.kind.name, snapshot.id) == ("domain", "org_domain_01JYM91EG9BH9CXSHRSD5658BA")
    assert snapshot.state.content["reason"] == "domain_verification_period_expired"
    assert content("organization_domain.verification_failed", state="verified")["verification"] == "failed"
    flat = sample("organization_domain.verification_failed")
    flat["data"] |= flat["data"].pop("organization_domain")
    assert refused(flat).field == "data.organization_domain"


@pytest.mark.parametrize(
    ("role", "roles", "slugs", "decides", "local"),
    [
        ({"slug": "admin"}, None, ["admin"], "admin", "admin"),
        ("admin", None, ["admin"], "admin", "admin"),
        ({"slug": "member"}, [{"slug": "member"}, {"slug": "admin"}], ["admin", "member"], "admin", "admin"),
        (None, ["owner", "member"], ["member", "owner"], "owner", "admin"),
        ({"slug": "auditor"}, [{"slug": "auditor"}], ["auditor"], "auditor", "member"),
        ({"slug": "Admin"}, None, ["Admin"], "Admin", "member"),
        ("", ["a", "b" * MAX_ID_LENGTH, "c" * (MAX_ID_LENGTH + 1)], ["a", "b" * MAX_ID_LENGTH], "a", "member"),
        ({}, {}, [], None, "member"),
        ({"slug": None}, [{"slug": 7}, None, 7, [], {"name": "admin"}], [], None, "member"),
        (["admin"], "admin", [], None, "member"),
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


def test_only_json_true_is_true() -> None:
    assert content("user.created", email_verified=True)["email_verified"] is True
    for value in ("true", 1, "yes", None, [True]):
        assert content("user.created", email_verified=value)["email_verified"] is False


def test_text_is_cleaned_for_every_database() -> None:
    assert clean("a\0b\ud800c") == "a\ufffdb?c"
    assert clean("x" * (MAX_TEXT + 1)) == "x" * MAX_TEXT
    assert content("user.created", first_name="\ud83d\ude00\0")["first_name"].encode()


def test_an_address_that_is_too_long_becomes_none() -> None:
    domain = "@acme.example"
    longest = "a" * (MAX_EMAIL - len(domain)) + domain
    assert content("user.created", email=longest)["email"] == longest
    assert content("user.created", email="a" + longest)["email"] is None


def test_derived_columns_of_a_user() -> None:
    derive = KINDS["user"].derive
    assert derive({"email": "Ada@BÜCHER.example"}) == {
        "email_normalized": "ada@xn--bcher-kva.example",
        "email_domain": "xn--bcher-kva.example",
    }
    assert derive({"email": "no address"}) == derive({}) == {"email_normalized": None, "email_domain": None}


def test_columns_that_payloads_may_omit() -> None:
    assert {name: kind.optional for name, kind in KINDS.items() if kind.optional} == {
        "organization": ("external_id", "stripe_customer_id", "metadata"),
        "user": ("external_id", "metadata"),
        "membership": ("organization_id", "user_id", "custom_attributes"),
        "domain": ("organization_id",),
        "connection": ("organization_id",),
        "saml_certificate": ("organization_id",),
        "role": ("resource_type",),
    }
    for value in (None, 7, "organization"):  # null counts as omitted: without a type, a role could be a member's
        given = read(made("role.updated", resource_type_slug=value)).state.versions
        assert given.keys() == ({"resource_type"} if value == "organization" else set())


def test_only_objects_of_a_size_that_workos_allows_are_stored() -> None:
    def stored(value: object) -> object:
        return content("user.created", metadata=value)["metadata"]

    largest = {f"{key:040d}": "\U0001f600" * 600 for key in range(50)}
    assert stored(largest) == largest
    assert stored({"key": "x" * MAX_TEXT, "list": [1, {"deep": None}]}) is not None
    unusable: list[object] = [{}, [], "text", 7, None, {str(key): "x" * 9_000 for key in range(20)}]
    assert [stored(value) for value in unusable] == [None] * len(unusable)
    assert stored({"nul \0": float("inf")}) == {"nul \ufffd": None}


# Objects read from the API


def test_the_version_of_a_read_object_has_the_time_of_the_read() -> None:
    user = sample("user.updated")["data"]
    version = read_object(KINDS["user"], user, READ_AT, ROLES).state.version
    assert version == Version(datetime.fromisoformat(user["updated_at"]), READ_AT + timedelta(seconds=1), "")
    for name in ("role", "permission"):
        data = sample(f"{name}.updated")["data"]
        at = datetime.fromisoformat(data["updated_at"])
        assert read_object(KINDS[name], data, READ_AT, ROLES).state.version == Version(at, at, "")


def test_the_api_does_not_say_why_a_domain_failed() -> None:
    domain = sample("organization_domain.created")["data"]
    assert "reason" not in read_object(KINDS["domain"], domain | {"state": "failed"}, READ_AT, ROLES).state.content
    assert read_object(KINDS["domain"], domain, READ_AT, ROLES).state.content["reason"] is None


@pytest.mark.parametrize(
    ("id", "type", "shown"),
    [
        ("billing", "EnvironmentRole", {}),
        ("org_1/billing", "OrganizationRole", {"organization_id": "org_1"}),
        ("org_1/billing", "EnvironmentRole", None),
    ],
)
def test_roles_as_shown_by_a_read(id: str, type: str, shown: JSON | None) -> None:
    item = {"slug": "billing", "type": type}
    assert KINDS["role"].from_read(id, item) == (None if shown is None else item | shown)


@pytest.mark.parametrize(("id", "type"), [("billing", "OrganizationRole"), ("org_1/billing", None), ("/x", "X")])
def test_an_answer_with_another_role_is_refused(id: str, type: str | None) -> None:
    with pytest.raises(PayloadError, match=r"^role\.type: is not that of the requested role$"):
        KINDS["role"].from_read(id, {"slug": "billing", "type": type})


def listed(name: str, item: object, organization_id: str = "") -> list[tuple[str, Any]]:
    objects = LISTINGS[name][1].objects
    assert objects is not None
    return list(objects(item, organization_id))


def test_an_organization_is_listed_with_its_domains() -> None:
    item = {"id": "org_1", "domains": [{"id": "d_1"}, None]}
    assert listed("organizations", item) == [("organization", item), ("domain", {"id": "d_1"}), ("domain", None)]
    assert listed("organization", None) == [("organization", None)]
    for domains in (None, "d_1", 7):
        with pytest.raises(PayloadError, match=r"organization\.domains"):
            listed("organizations", {"id": "org_1", "domains": domains})


def test_only_an_organizations_own_roles_are_listed() -> None:
    own = {"slug": "editor", "type": "OrganizationRole"}
    assert listed("organization_roles", own, "org_1") == [("role", own | {"organization_id": "org_1"})]
    assert listed("organization_roles", own | {"type": "EnvironmentRole"}, "org_1") == []
    assert listed("organization_roles", own | {"type": "Other"}, "org_1") == [("role", None)]


# Whatever JSON can say, with lone surrogates and NUL; and what is nearly right, to get deep into the readers.

texts = st.text(st.characters(), max_size=6) | st.sampled_from(
    ["org_1", "user_1", "admin", "active", "verified", "acme.example", "2025-07-01T00:00:00Z", "2025-07-01 00:00:00"]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
FIELDS = sorted({name for kind in KINDS.values() for name in kind.columns} | {"id", "updated_at", "state", "roles"})
objects = st.dictionaries(st.sampled_from(FIELDS), values, max_size=8)
instants = st.sampled_from(["2025-07-01T00:00:00Z", "2025-07-01 00:00:00"])
nearly_right = st.builds(
    lambda wild, at: {"id": "x", "slug": "x", "organization_id": "org_1", "user_id": "user_1", "updated_at": at} | wild,
    objects,
    instants,
)


@each_kind
@given(choice=st.data(), data=values | objects | nearly_right, created_at=values | instants, nest=st.booleans())
@settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.too_slow])
def test_any_data_is_read_or_refused(kind: Kind, choice: Any, data: Any, created_at: Any, nest: bool) -> None:
    type = choice.draw(st.sampled_from(sorted(kind.events)))
    if nest or type.endswith("verification_failed"):
        data = {"organization_domain": data, "reason": data}
    if kind is KINDS["saml_certificate"]:
        data = {"connection": data, "certificate": {"certificate_type": created_at, "expiry_date": created_at}}
    body = json.dumps({"id": "event_1", "event": type, "data": data, "created_at": created_at}).encode()
    try:
        _, snapshot = read_event("event_1", type, body, ROLES)
    except PayloadError:
        return
    assert snapshot is not None and snapshot.kind is kind and snapshot.id
    check_storable(kind, snapshot.state)


def check_storable(kind: Kind, state: State) -> None:
    assert set(state.content) == set(kind.columns)
    times = [value for value in state.content.values() if isinstance(value, datetime)]
    for time in (state.version.updated_at, state.version.event_at, *times):
        assert time.utcoffset() == timedelta(0)
    for value in state.content.values():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, str):
                item.encode()
                assert "\0" not in item and len(item) <= MAX_TEXT


# Texts


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("2021-06-25T19:07:33.155Z", datetime(2021, 6, 25, 19, 7, 33, 155_000, UTC)),
        ("2023-04-28 20:05:31.093", datetime(2023, 4, 28, 20, 5, 31, 93_000, UTC)),
        ("2023-04-28T22:05:31+02:00", datetime(2023, 4, 28, 20, 5, 31, 0, UTC)),
        ("2023-04-28", datetime(2023, 4, 28, tzinfo=UTC)),
        ("0001-01-01T00:00:00+01:00", None),
        ("9999-12-31T23:59:59-01:00", None),
        ("2023-02-30T00:00:00Z", None),
        ("\ud800", None),
        (1_750_880_000, None),
    ],
)
def test_times_are_instants_in_utc_or_none(text: object, at: datetime | None) -> None:
    found = parse_time(text)
    assert found == at
    assert found is None or found.utcoffset() == timedelta(0)


@pytest.mark.parametrize(
    ("domain", "normal"),
    [
        ("ACME.Example.", "acme.example"),
        ("BÜCHER.example", "xn--bcher-kva.example"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("faß.example", "xn--fa-hia.example"),
        ("acme。example", "acme.example"),
        ("localhost", None),
        ("", None),
        (None, None),
        ("a..example", None),
        ("a b.example", None),
        ("-a.example", None),
        ("x" * 64 + ".example", None),
        ("acme.example/path", None),
        ("\ud800.example", None),
    ],
)
def test_domains_are_normalized(domain: str | None, normal: str | None) -> None:
    assert normalize_domain(domain) == normal


def test_ids_are_printable_and_of_limited_length() -> None:
    assert is_id("event_1") and is_id("evt 1") and is_id("x" * 255)
    assert not any(is_id(value) for value in ("", "x" * 256, "a/b", ".", "..", "é", "a\n"))


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


def test_unusual_json_is_read_as_pythons_own_parser_reads_it() -> None:
    for body in (b"", b"{", b'{"a": 1, "a": 2}', b"NaN", b"[1,]", b"\xff", b"[" * 100_000, b" 1 ", b"1e999"):
        assert outcome(parse_json, body) == outcome(json.loads, body)


def outcome(parse: Callable[[bytes], Any], body: bytes) -> str:
    """The result as text: NaN is not equal to itself."""
    try:
        return repr(parse(body))
    except (ValueError, RecursionError):
        return "refused"
