"""The sandbox's HTTP API, called by the real WorkOS SDK over loopback."""

import json
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import pytest
from workos import WorkOSClient
from workos._errors import (
    AuthenticationError,
    BadRequestError,
    NotFoundError,
    RateLimitExceededError,
    ServerError,
    UnprocessableEntityError,
    WorkOSError,
)
from workos.authorization.models import AuthorizationPermission
from workos.events.models import EventSchema
from workos.events.models.event_schema import EventSchemaUnknown
from workos.organization_membership import RoleMultiple, RoleSingle
from workos.organization_membership.models import UserOrganizationMembership
from workos.organizations.models import Organization, OrganizationDomainData
from workos.sso.models import Connection
from workos.user_management.models import Invitation, User

from tests.support import EVENTS
from worker.sandbox import Knobs, Sandbox, World, WorldError, play, populate

STATUSES = ["active", "inactive", "pending"]
RECORDED = EVENTS.parent / "session"
EVENT_FILES = sorted((EVENTS).glob("*.json"))


class Clock:
    """A clock that a test moves by hand."""

    def __init__(self) -> None:
        self.now = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def forward(self, **amount: float) -> None:
        self.now += timedelta(**amount)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sandbox(clock: Clock) -> Iterator[Sandbox]:
    with Sandbox(seed=7, clock=clock) as running:
        yield running


@pytest.fixture
def client(sandbox: Sandbox) -> WorkOSClient:
    return sandbox.client(max_retries=0)


def ids_of(items: Iterable[Any]) -> list[str]:
    return [item.id for item in items]


def all_types(world: World) -> list[str]:
    return sorted({event["event"] for event in world.events})


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("limit", [1, 7, 100])
def test_every_listing_pages_through_all_objects(
    sandbox: Sandbox, client: WorkOSClient, order: str, limit: int
) -> None:
    sandbox.play(150)
    world = sandbox.world

    def ids(page: Any) -> list[str]:
        return ids_of(page.auto_paging_iter())

    def expected(table: dict[str, Any]) -> list[str]:
        return sorted(table, reverse=order == "desc")

    organizations = client.organizations.list_organizations(limit=limit, order=order)
    assert ids(organizations) == expected(world.organizations)
    assert ids(client.user_management.list_users(limit=limit, order=order)) == expected(world.users)
    assert ids(client.sso.list_connections(limit=limit, order=order)) == expected(world.connections)
    for organization_id in world.organizations:
        memberships = client.organization_membership.list_organization_memberships(
            organization_id=organization_id,
            statuses=["active", "inactive", "pending"],
            limit=limit,
            order=order,
        )
        own = {id: m for id, m in world.memberships.items() if m["organization_id"] == organization_id}
        assert ids(memberships) == expected(own)


def test_pages_can_be_read_backwards(sandbox: Sandbox, client: WorkOSClient) -> None:
    made = [sandbox.world.create_organization(f"Company {n}")["id"] for n in range(5)]
    second = client.organizations.list_organizations(limit=2, order="asc", after=made[1])
    assert [o.id for o in second.data] == made[2:4]
    assert (second.before, second.after) == (made[2], made[3])
    first = client.organizations.list_organizations(limit=2, order="asc", before=second.before)
    assert [o.id for o in first.data] == made[:2]
    assert (first.before, first.after) == (None, made[1])
    newest = client.organizations.list_organizations(limit=2)
    assert [o.id for o in newest.data] == [made[4], made[3]]
    assert newest.before is None


def test_the_sdk_parses_single_objects_and_roles(sandbox: Sandbox, client: WorkOSClient) -> None:
    sandbox.play(200)
    world = sandbox.world
    for id, organization in world.organizations.items():
        shown = client.organizations.get_organization(id)
        assert shown.name == organization["name"]
        assert {d.id for d in shown.domains} == set(world.children(id, "organization_domain"))
        slugs = [role.slug for role in client.authorization.list_organization_roles(id).data]
        assert slugs[:2] == ["admin", "member"]
    for id, user in world.users.items():
        assert client.user_management.get_user(id).email == user["email"]
    for id, domain in world.domains.items():
        assert client.organization_domains.get_organization_domain(id).domain == domain["domain"]
    for id, membership in world.memberships.items():
        assert client.organization_membership.get_organization_membership(id).status == membership["status"]
    for id in world.connections:
        assert client.sso.get_connection(id).id == id
    assert {r.slug for r in client.authorization.list_environment_roles().data} >= {"admin", "member"}


def test_filters(sandbox: Sandbox, client: WorkOSClient) -> None:
    world = sandbox.world
    ours = world.create_organization("Acme", domains=[("acme.example", "verified")], external_id="17")["id"]
    world.create_organization("Globex")
    ada = world.create_user("Ada@acme.example")["id"]
    world.create_user("eve@globex.test")
    world.create_membership(ours, ada)
    assert [u.id for u in client.user_management.list_users(email="ada@acme.example").data] == [ada]
    assert [u.id for u in client.user_management.list_users(organization_id=ours).data] == [ada]
    assert [o.id for o in client.organizations.list_organizations(domains=["acme.example"]).data] == [ours]
    assert client.organizations.get_organization_by_external_id("17").id == ours


def test_memberships_are_listed_by_status_and_need_a_parent(sandbox: Sandbox, client: WorkOSClient) -> None:
    world, listed = sandbox.world, client.organization_membership.list_organization_memberships
    organization = world.create_organization("Acme")["id"]
    users = [world.create_user(f"u{n}@acme.example")["id"] for n in range(3)]
    active = world.create_membership(organization, users[0])["id"]
    pending = world.create_membership(organization, users[1], status="pending")["id"]
    inactive = world.create_membership(organization, users[2])["id"]
    world.deactivate_membership(inactive)
    assert [m.id for m in listed(organization_id=organization).data] == [active]
    everything = listed(organization_id=organization, statuses=["active", "inactive", "pending"], order="asc")
    assert [m.id for m in everything.data] == [active, pending, inactive]
    assert [m.id for m in listed(user_id=users[1], statuses=["pending"]).data] == [pending]
    repeated = f"{sandbox.base_url}/user_management/organization_memberships?organization_id={organization}"
    answer = fetch(repeated + "&statuses=pending&statuses=inactive", sandbox.api_key)
    assert [m["id"] for m in answer["data"]] == [inactive, pending]
    with pytest.raises(UnprocessableEntityError):
        listed()


def test_membership_calls_of_the_sdk(sandbox: Sandbox, client: WorkOSClient) -> None:
    memberships = client.organization_membership
    organization = client.organizations.create_organization(
        name="Acme",
        domain_data=[OrganizationDomainData.from_dict({"domain": "acme.example", "state": "verified"})],
    )
    assert [d.state for d in organization.domains] == ["verified"]
    user = client.user_management.create_user(email="ada@acme.example", email_verified=True)
    made = memberships.create_organization_membership(
        user_id=user.id, organization_id=organization.id, role=RoleSingle("admin")
    )
    assert (made.role.slug, made.status) == ("admin", "active")
    assert memberships.deactivate_organization_membership(made.id).status == "inactive"
    again = memberships.create_organization_membership(user_id=user.id, organization_id=organization.id)
    assert (again.id, again.status) == (made.id, "active")  # documented: an inactive one is activated
    with pytest.raises(WorkOSError) as refusal:
        memberships.create_organization_membership(user_id=user.id, organization_id=organization.id)
    assert getattr(refusal.value, "status_code", None) == 409
    both = memberships.update_organization_membership(made.id, role=RoleMultiple(["member", "admin"]))
    assert [role.slug for role in both.roles] == ["member", "admin"]
    memberships.deactivate_organization_membership(made.id)
    assert memberships.reactivate_organization_membership(made.id).status == "active"
    memberships.delete_organization_membership(made.id)
    new = memberships.create_organization_membership(user_id=user.id, organization_id=organization.id)
    assert new.id != made.id
    assert client.organizations.update_organization(organization.id, name="Acme Inc").name == "Acme Inc"
    client.user_management.delete_user(user.id)
    client.organizations.delete_organization(organization.id)
    assert not sandbox.world.truth()["memberships"]


def test_errors_carry_the_documented_bodies(sandbox: Sandbox, client: WorkOSClient) -> None:
    with pytest.raises(NotFoundError) as missing:
        client.organizations.get_organization("org_missing")
    assert missing.value.code == "entity_not_found"
    assert missing.value.response_json is not None
    assert missing.value.response_json["entity_id"] == "org_missing"
    with pytest.raises(AuthenticationError):
        sandbox.client(api_key="sk_test_wrong", max_retries=0).organizations.list_organizations()
    with pytest.raises(UnprocessableEntityError):
        client.organizations.list_organizations(limit=101)


def test_a_second_key_opens_another_environment() -> None:
    sandbox = Sandbox()
    other = sandbox.add_environment("sk_test_other")
    with sandbox:
        mine = sandbox.world.create_organization("Mine")["id"]
        other.world.create_organization("Theirs")
        listed = sandbox.client(api_key="sk_test_other").organizations.list_organizations()
        assert [o.name for o in listed.data] == ["Theirs"]
        assert [o.id for o in sandbox.client().organizations.list_organizations().data] == [mine]


def test_webhook_endpoints_show_their_secret_once(sandbox: Sandbox, client: WorkOSClient) -> None:
    made = client.webhooks.create_webhook_endpoint(endpoint_url="http://127.0.0.1:9/x", events=["user.created"])
    assert made.secret.startswith("whsec_")
    listed = client.webhooks.list_webhook_endpoints().data
    assert [(e.id, e.secret, e.events) for e in listed] == [(made.id, "********", ["user.created"])]
    changed = client.webhooks.update_webhook_endpoint(made.id, status="disabled")
    assert changed.status == "disabled"
    client.webhooks.delete_webhook_endpoint(made.id)
    assert client.webhooks.list_webhook_endpoints().data == []


def test_rate_limits_answer_429_and_the_sdk_waits_for_them(sandbox: Sandbox) -> None:
    sandbox.knobs.rate_limits = True
    sandbox.knobs.user_reads_limit = (3, 0.5)
    impatient = sandbox.client(max_retries=0)
    for _ in range(3):
        impatient.user_management.list_users()
    with pytest.raises(RateLimitExceededError) as limited:
        impatient.user_management.list_users()
    assert limited.value.retry_after == 1
    impatient.organizations.list_organizations()  # another limit
    sandbox.client(max_retries=1).user_management.list_users()  # waits for a second, as Retry-After says, and succeeds
    sandbox.knobs.rate_limits = False
    sandbox.faults.fail("/organizations", status=429, retry_after=0, times=2)
    sandbox.client(max_retries=2).organizations.list_organizations()
    assert sandbox.calls["GET", "/organizations"] == 4


def test_injected_faults(sandbox: Sandbox, client: WorkOSClient) -> None:
    for n in range(5):
        sandbox.world.create_organization(f"Company {n}")
    sandbox.faults.truncate("/organizations", 2)
    with pytest.raises(ServerError):
        list(client.organizations.list_organizations(limit=2, order="asc").auto_paging_iter())
    with pytest.raises(ServerError):
        list(client.organizations.list_organizations(limit=2, order="asc").auto_paging_iter())
    sandbox.faults.clear()
    sandbox.faults.empty("/organizations")
    assert client.organizations.list_organizations().data == []
    sandbox.faults.invalid_item("/organizations", missing="name")
    with pytest.raises(WorkOSError):
        client.organizations.list_organizations()
    sandbox.faults.invalid_item("/organizations", item=1, change=lambda item: {**item, "domains": "none"})
    with pytest.raises((WorkOSError, TypeError, AttributeError)):
        client.organizations.list_organizations()
    assert len(client.organizations.list_organizations().data) == 5


def test_a_call_whose_answer_is_lost_takes_effect(sandbox: Sandbox, client: WorkOSClient) -> None:
    for status in (504, 0):
        sandbox.faults.fail("/organizations", method="POST", status=status, after_effect=True)
        with pytest.raises(WorkOSError):
            client.organizations.create_organization(name="Acme")
    assert len(sandbox.world.organizations) == 2


def test_the_hook_interleaves_at_page_boundaries(sandbox: Sandbox, client: WorkOSClient) -> None:
    made = [sandbox.world.create_organization(f"Company {n}")["id"] for n in range(4)]

    def hook(method: str, path: str, query: Any) -> None:
        if query.get("after") == made[1]:
            sandbox.world.delete_organization(made[1])  # the cursor itself
            sandbox.world.create_organization("Late")

    sandbox.on_request = hook
    names = [o.name for o in client.organizations.list_organizations(limit=2, order="asc").auto_paging_iter()]
    assert names == ["Company 0", "Company 1", "Company 2", "Company 3", "Late"]


def test_the_date_header_shows_the_clock_of_the_environment(sandbox: Sandbox, clock: Clock) -> None:
    clock.forward(days=3)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(sandbox.base_url + "/organizations")
    with refused.value:
        assert parsedate_to_datetime(refused.value.headers["Date"]) == clock.now


def fetch(url: str, api_key: str) -> Any:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {api_key}"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


# Events


def test_events_are_held_back_from_ascending_reads(sandbox: Sandbox, client: WorkOSClient, clock: Clock) -> None:
    def listed(order: str) -> list[str]:
        page = client.events.list_events(events=["organization.created"], order=order)
        return [event.to_dict()["data"]["name"] for event in page.data]

    sandbox.world.create_organization("Early")
    clock.forward(seconds=1.5)
    sandbox.world.create_organization("Late")
    assert listed("asc") == []
    assert listed("desc") == ["Late", "Early"]
    clock.forward(seconds=1)
    assert listed("asc") == ["Early"]
    sandbox.knobs.hold_back = 0
    assert listed("asc") == ["Early", "Late"]


def test_events_page_in_the_order_of_the_log(sandbox: Sandbox, client: WorkOSClient, clock: Clock) -> None:
    sandbox.play(120)
    clock.forward(seconds=10)
    types = all_types(sandbox.world)
    ids = [event["id"] for event in sandbox.world.events]
    for limit in (9, 100):
        page = client.events.list_events(events=types, order="asc", limit=limit)
        assert ids_of(page.auto_paging_iter()) == ids
    rest = client.events.list_events(events=types, order="asc", after=ids[100], limit=100)
    assert ids_of(rest.data) == ids[101:]
    newest = client.events.list_events(events=types, order="desc", limit=100)
    assert ids_of(newest.auto_paging_iter()) == ids[::-1]
    wanted = [e["id"] for e in sandbox.world.events if e["event"] == "user.created"]
    some = client.events.list_events(events=["user.created"], order="asc", limit=5)
    assert ids_of(some.auto_paging_iter()) == wanted


def test_invalid_event_queries_are_refused(sandbox: Sandbox, client: WorkOSClient, clock: Clock) -> None:
    def count(**arguments: Any) -> int:
        page = client.events.list_events(events=["organization.created"], order="asc", **arguments)
        return len(page.data)

    start = clock.now
    sandbox.world.create_organization("First")
    first = sandbox.world.events[0]["id"]
    clock.forward(days=40)
    sandbox.world.create_organization("Second")
    clock.forward(seconds=10)
    assert count() == 1  # the last 30 days
    assert count(range_start=start) == 1  # 30 days from there
    assert count(range_start=start, range_end=start + timedelta(days=30)) == 1
    assert count(after=first) == 1
    for refused in (
        {"after": first, "range_start": start},
        {"range_start": start, "range_end": start + timedelta(days=31)},
        {"range_start": start - timedelta(days=60)},
        {"after": "event_unknown"},
    ):
        with pytest.raises(BadRequestError):
            count(**refused)
    clock.forward(days=60)
    with pytest.raises(BadRequestError):
        count(after=first)  # expired
    sandbox.knobs.unknown_after = "beginning"
    assert count(after=first) == 1
    assert count(after="event_unknown") == 1


# Shapes


@pytest.fixture(scope="module")
def long_life() -> World:
    world = World(3)
    play(world, 3000, seed=11)
    return world


def fields(value: Any, place: str = "", *, nulls: bool = True) -> set[tuple[str, str]]:
    """The places and types in JSON. The contents of `metadata` and `custom_attributes` are left out."""
    if isinstance(value, dict) and not place.endswith(("metadata", "custom_attributes")):
        inside = [fields(each, f"{place}.{name}", nulls=nulls) for name, each in value.items()]
        return {(place, "object")}.union(*inside)
    if isinstance(value, list):
        return {(place, "array")}.union(*(fields(each, f"{place}[]", nulls=nulls) for each in value))
    return {(place, type(value).__name__)} if nulls or value is not None else set()


def test_the_sdk_parses_every_event_of_a_long_scenario(long_life: World) -> None:
    assert len(all_types(long_life)) == 32
    for event in long_life.events:
        parsed = EventSchema.from_dict(event)
        assert not isinstance(parsed, EventSchemaUnknown)
        assert event["id"].startswith("event_")
        unknown = fields(event, nulls=False) ^ fields(parsed.to_dict(), nulls=False)
        assert {place for place, _ in unknown} <= {".data.allow_profiles_outside_organization"}
    ids = [event["id"] for event in long_life.events]
    assert ids == sorted(set(ids))


@pytest.mark.parametrize(
    ("table", "model"),
    [
        ("organizations", Organization),
        ("users", User),
        ("memberships", UserOrganizationMembership),
        ("invitations", Invitation),
        ("connections", Connection),
        ("permissions", AuthorizationPermission),
    ],
)
def test_objects_have_the_fields_of_the_sdk(long_life: World, table: str, model: Any) -> None:
    for shown in long_life.truth()[table]:
        assert fields(model.from_dict(shown).to_dict(), nulls=False) == fields(shown, nulls=False)


NOT_IN_THE_SANDBOX = re.compile(r"\.context\.|\.data\.(external_id|metadata)$")
"""Fields of samples that the sandbox omits: who did it, and two fields of the emulator's memberships."""


def test_events_have_the_fields_of_the_samples(long_life: World) -> None:
    """The documented samples, and the session that was recorded from WorkOS's emulator, which sends no envelope."""
    recorded = [json.loads(line)["body"] for line in (RECORDED / "deliveries.jsonl").read_text().splitlines()]
    samples: dict[str, set[tuple[str, str]]] = {}
    for text in (*(file.read_text() for file in EVENT_FILES), *recorded):
        event = json.loads(text)
        samples.setdefault(event["event"], set()).update(fields(event))
    found: dict[str, set[tuple[str, str]]] = {}
    for event in long_life.events:
        found.setdefault(event["event"], set()).update(fields(event))
    for kind, ours in found.items():
        mine, theirs = dict(sorted(ours)), dict(sorted(samples[kind]))
        missing = {place for place in theirs.keys() - mine.keys() if not NOT_IN_THE_SANDBOX.search(place)}
        assert missing == set(), kind
        invented = {place for place in mine.keys() - theirs.keys() if not place.startswith(".data.domains[]")}
        assert invented == set(), kind  # a sample without domains does not show those


def test_listings_have_the_fields_of_the_recorded_ones(long_life: World) -> None:
    recorded, ours = json.loads((RECORDED / "truth.json").read_text()), long_life.truth()
    for table, listed in recorded.items():
        known = {place for each in ours[table] for place, _ in fields(each)}
        theirs = {place for each in listed for place, _ in fields(each)}
        assert theirs - known <= {".external_id", ".metadata"}, table


@pytest.mark.parametrize("file", EVENT_FILES, ids=lambda file: str(file.stem))
def test_the_sdk_parses_the_payload_files(file: Path) -> None:
    event = json.loads(file.read_text())
    assert event["event"] == file.stem
    assert set(event) == {"id", "object", "event", "data", "created_at", "context"}
    assert not isinstance(EventSchema.from_dict(event), EventSchemaUnknown)


def test_there_is_a_payload_file_for_every_type(long_life: World) -> None:
    assert {file.stem for file in EVENT_FILES} == {*all_types(long_life), "dsync.activated"}


# The world


def test_a_scenario_is_repeatable(clock: Clock) -> None:
    worlds = World(5, clock), World(5, clock)
    for world in worlds:
        play(world, 300)
    assert worlds[0].events == worlds[1].events
    assert worlds[0].truth() == worlds[1].truth()


def test_updated_at_never_decreases_and_stays_on_deletion() -> None:
    world = World(5)
    play(world, 3000, seed=11)
    last: dict[str, str] = {}
    deleted = 0
    for event in world.events:
        data = event["data"].get("organization_domain", event["data"])
        if "id" not in data:
            continue  # roles
        if event["event"].endswith(".deleted"):
            deleted += 1
            assert data["updated_at"] == last[data["id"]]
        assert data["updated_at"] >= last.get(data["id"], "")
        last[data["id"]] = data["updated_at"]
    assert deleted > 50


def test_updated_at_holds_when_the_clock_goes_back(clock: Clock) -> None:
    world = World(0, clock, Knobs(ties=True))
    made = world.create_user("ada@acme.example")
    clock.forward(hours=-1)
    assert world.update_user(made["id"], last_name="Hopper")["updated_at"] == made["updated_at"]


def test_a_new_organization_does_not_embed_its_domains() -> None:
    world = World()
    world.create_organization("Acme", domains=[("acme.example", "verified")])
    first, second = world.events
    assert (first["event"], first["data"]["domains"]) == ("organization.created", [])
    assert (second["event"], second["data"]["state"]) == ("organization_domain.created", "verified")


def test_deleting_a_parent_emits_events_for_children_if_configured() -> None:
    for reported, expected in ((True, 4), (False, 1)):
        world = World(knobs=Knobs(children_deleted=reported))
        organization = world.create_organization("Acme", domains=[("acme.example", "pending")])["id"]
        for n in range(2):
            world.create_membership(organization, world.create_user(f"u{n}@acme.example")["id"])
        before = len(world.events)
        world.delete_organization(organization)
        assert len(world.events) - before == expected
        assert not world.memberships and not world.domains


@pytest.mark.parametrize(
    ("how", "updates", "moved"),
    [("events", 2, True), ("silently", 0, True), ("silently_same_version", 0, False)],
)
def test_deleting_a_role_moves_its_members(clock: Clock, how: Any, updates: int, moved: bool) -> None:
    world = World(0, clock, Knobs(role_deletion=how))
    organization = world.create_organization("Acme")["id"]
    world.create_role("billing")
    users = [world.create_user(f"u{n}@acme.example")["id"] for n in range(2)]
    one = world.create_membership(organization, users[0], role="billing")
    two = world.create_membership(organization, users[1], roles=["admin", "billing"])
    clock.forward(seconds=1)
    world.delete_role("billing")
    types = [event["event"] for event in world.events[-1 - updates :]]
    assert types == ["role.deleted"] + ["organization_membership.updated"] * updates
    now = [world.memberships[m["id"]] for m in (one, two)]
    assert [[role["slug"] for role in m["roles"]] for m in now] == [["member"], ["admin"]]
    assert (now[0]["updated_at"] > one["updated_at"]) is moved


def test_invalid_operations_are_refused() -> None:
    world = World()
    organization, user = world.create_organization("Acme")["id"], world.create_user("ada@acme.example")["id"]
    pending = world.create_membership(organization, user, status="pending")["id"]
    refusals: list[Callable[[], Any]] = [
        lambda: world.create_user("ADA@acme.example"),
        lambda: world.create_membership(organization, user),
        lambda: world.deactivate_membership(pending),
        lambda: world.reactivate_membership(pending),
        lambda: world.update_membership(pending, role="nobody"),
        lambda: world.delete_user("user_missing"),
    ]
    for refused in refusals:
        with pytest.raises(WorldError):
            refused()


def test_silent_changes_and_populate(clock: Clock) -> None:
    world = World(0, clock)
    populate(world, organizations=3, members=4, users=5)
    assert not world.events
    assert {name: len(found) for name, found in world.truth().items()} == {
        "organizations": 3,
        "users": 5,
        "memberships": 12,
        "roles": 2,
        "permissions": 0,
        "connections": 0,
        "invitations": 0,
    }
    with world.silently():
        world.delete_user(next(iter(world.users)))
    assert not world.events


def test_playing_in_the_background_at_a_rate(sandbox: Sandbox) -> None:
    emitted = threading.Event()
    sandbox.world.subscribe(lambda event: emitted.set())
    sandbox.start_playing(10**6, rate=200.0)
    assert emitted.wait(5)
    assert sandbox.playing
    with pytest.raises(ValueError, match="already"):
        sandbox.start_playing(1)
    started = time.monotonic()
    sandbox.stop_playing()
    assert time.monotonic() - started < 2
    assert not sandbox.playing
