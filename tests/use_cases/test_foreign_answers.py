"""Only WorkOS's own 404 means gone. Any other answer without the object is unreadable, and changes nothing."""

import json
from functools import partial

import pytest
from sqlalchemy import Engine

from models.database import in_transaction
from models.tables import Read
from tests.support import JSON, rows
from tests.support.actors import by
from tests.support.resync import (
    CLIENT_ID,
    MEMBERSHIPS,
    catch_up_with,
    changes,
    continue_run,
    found,
    live,
    make_reads_due,
    mirror_of,
    quietly,
    small_life,
)
from worker.errors import InvalidApiKeyError, NotFoundError, WorkOSError
from worker.kinds import KINDS
from worker.mirror.read_requests import request_reads
from worker.repair.catch_up import catch_up
from worker.repair.environment import require_same_environment
from worker.repair.reads import work_due
from worker.repair.resync.resync import start
from worker.sandbox import Sandbox
from worker.settings import Settings
from worker.workos_api.client import WorkOSClient

pytestmark = pytest.mark.long

HTML = b"<!doctype html><title>404 Not Found</title>"
NESTED = b'{"a":' * 5000 + b"1" + b"}" * 5000
ANSWERS: dict[str, tuple[int, bytes]] = {
    **{
        f"200 {name}": (200, body)
        for name, body in {
            "html": HTML,
            "empty object": b"{}",
            "list": b"[]",
            "null": b"null",
            "nothing": b"",
            "string": b'"gone"',
            "not utf-8": b'{"id":"\xff"}',
            "too deep": NESTED,
            "an error": b'{"message":"User not found: \'user_1\'.","code":"entity_not_found"}',
            "a page": b'{"object":"list","data":[],"list_metadata":{"after":null}}',
            "another id": b'{"object":"user","id":"user_other","slug":"other","updated_at":"2091-01-01T00:00:00Z"}',
        }.items()
    },
    "204": (204, b""),
    "302": (302, b""),
    "302 html": (302, HTML),
    **{
        f"404 {name}": (404, body)
        for name, body in {
            "html": HTML,
            "empty object": b"{}",
            "list": b"[]",
            "null": b"null",
            "nothing": b"",
            "of an unknown route": b'{"message":"Cannot GET /users/1","error":"Not Found","statusCode":404}',
            "of a gateway": b'{"message":"Not Found"}',
            "of another gateway": b'{"message":"no Route matched with those values"}',
            "of a server": b'{"status":404,"error":"Not Found","path":"/users/1"}',
            "message of a wrong type": b'{"message":{"text":"User not found"},"code":["entity_not_found"]}',
        }.items()
    },
    "410": (410, b'{"message":"User not found: \'user_1\'."}'),
    "401 html": (401, HTML),
    "403 html": (403, HTML),
    "403 odd code": (403, b'{"message":7,"error":{"a":1}}'),
    "429 list": (429, b"[]"),
    "500 list": (500, b"[]"),
    "503 string": (503, b'"away"'),
}
every_answer = pytest.mark.parametrize(("status", "body"), ANSWERS.values(), ids=ANSWERS)

OWN_404: dict[str, JSON] = {
    "documented": {"message": "Organization not found: 'org_1'."},
    "with a code": {"message": "Request could not be processed.", "code": "entity_not_found"},
    "of the emulator": {"message": "Role not found", "code": "not_found"},
}


def one_of_each(engine: Engine, sandbox: Sandbox) -> dict[str, tuple[str, str]]:
    """Fill a mirror with one object of each kind; returns name → (kind, id)."""
    world = sandbox.world
    small_life(world, 1, 1)
    org = next(iter(world.organizations))
    world.create_role("billing")
    world.create_role("editor", organization_id=org)
    world.create_permission("invoices:read")
    connection = world.create_connection(org, "Okta")["id"]
    world.activate_connection(connection)
    invitation = world.create_invitation("ann@acme.example", org)["id"]
    catch_up_with(engine, world)
    return {
        "organization": ("organization", org),
        "user": ("user", next(iter(world.users))),
        "membership": ("membership", next(iter(world.memberships))),
        "domain": ("domain", next(iter(world.domains))),
        "role": ("role", "billing"),
        "organization's role": ("role", f"{org}/editor"),
        "connection": ("connection", connection),
        "permission": ("permission", "invoices:read"),
        "invitation": ("invitation", invitation),
    }


def read(engine: Engine, workos: WorkOSClient, *objects: tuple[str, str]) -> int:
    """Make a confirmed read of each object; returns the number of successful reads."""
    for kind, id in objects:
        in_transaction(engine, partial(request_reads, kind=KINDS[kind], ids=[id], reason="a test", run_id=""))
    make_reads_due(engine)
    return work_due(engine, workos, lambda: False)


def by_id(objects: dict[str, tuple[str, str]]) -> str:
    """A pattern for the paths at which these objects are read."""
    return f".*/({'|'.join(id.rpartition('/')[2] for _, id in objects.values())})$"


@every_answer
def test_unusable_answer_deletes_nothing(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient, status: int, body: bytes
) -> None:
    objects = one_of_each(one_engine, sandbox)
    before, known = live(one_engine), changes(one_engine)
    sandbox.faults.answer(by_id(objects), body, status=status)
    assert read(one_engine, workos, *objects.values()) == 0
    assert live(one_engine) == before and changes(one_engine) == known
    left = {(row["kind"], row["object_id"]): row for row in rows(one_engine, Read)}
    for what, place in objects.items():
        assert left[place]["attempts"] == 1 and left[place]["error"], what
    sandbox.faults.clear()
    assert read(one_engine, workos) == len(objects)
    assert live(one_engine) == before and changes(one_engine) == known


def test_object_of_another_kind_is_not_used(one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient) -> None:
    objects = one_of_each(one_engine, sandbox)
    before = live(one_engine)
    for _, id in objects.values():
        slug = id.rpartition("/")[2]
        other = {"object": "directory", "id": id, "slug": slug, "updated_at": "2091-01-01T00:00:00Z"}
        sandbox.faults.answer(f".*/{slug}$", json.dumps(other).encode())
    assert read(one_engine, workos, *objects.values()) == 0
    assert live(one_engine) == before


def test_role_of_unknown_type_is_neither_found_nor_deleted(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient
) -> None:
    objects = one_of_each(one_engine, sandbox)
    own, common = objects["organization's role"], objects["role"]
    role = {"object": "role", "slug": "editor", "updated_at": "2091-01-01T00:00:00Z"}
    sandbox.faults.answer(".*/roles/editor$", json.dumps(role).encode())
    sandbox.faults.answer(
        ".*/roles/billing$", json.dumps(role | {"slug": "billing", "type": "OrganizationRole"}).encode()
    )
    assert read(one_engine, workos, own, common) == 0
    sandbox.faults.clear()
    sandbox.faults.answer(".*/roles/editor$", json.dumps(role | {"type": "EnvironmentRole"}).encode())
    assert read(one_engine, workos) == 2
    assert live(one_engine)["role"] & {own[1], common[1]} == {common[1]}, "the organization has none of its own"


@pytest.mark.parametrize("body", OWN_404.values(), ids=OWN_404)
def test_workos_404_deletes_object_of_every_kind(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient, body: JSON
) -> None:
    objects = one_of_each(one_engine, sandbox)
    sandbox.faults.answer(by_id(objects), json.dumps(body).encode(), status=404)
    assert read(one_engine, workos, *objects.values()) == len(objects)
    for kind, id in objects.values():
        [row] = [row for row in rows(one_engine, KINDS[kind].table) if row["id"] == id]
        assert row["deleted_by"] == "resync", kind


@pytest.mark.parametrize(
    "name", ["200 html", "200 nothing", "200 another id", "204", "302", "404 html", "403 html", "500 list"]
)
def test_resync_reports_object_with_foreign_404(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient, name: str
) -> None:
    status, body = ANSWERS[name]
    before = mirror_of(one_engine, sandbox, workos, 2)
    gone = next(iter(sandbox.world.memberships))
    quietly(sandbox.world, lambda: sandbox.world.delete_membership(gone))
    sandbox.faults.answer(f".*/{gone}$", body, status=status)
    run_id = start(one_engine, by("test"))
    assert continue_run(one_engine, workos, run_id)
    assert live(one_engine) == before
    assert found(one_engine, run_id) == {("membership", gone): ("invalid", "reported")}


@pytest.mark.parametrize("status", [200, 404])
def test_foreign_404_of_listing_deletes_no_organization(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient, status: int
) -> None:
    before = mirror_of(one_engine, sandbox, workos, 2)
    org = next(iter(sandbox.world.organizations))
    sandbox.faults.answer(MEMBERSHIPS, HTML, status=status, query=f"organization_id={org}")
    run_id = start(one_engine, by("test"))
    assert continue_run(one_engine, workos, run_id)
    assert live(one_engine) == before and found(one_engine, run_id) == {("organization", org): ("invalid", "reported")}
    assert sandbox.calls["GET", "/organizations/{id}"] == 0


def test_foreign_404_keeps_the_cursor(one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient) -> None:
    small_life(sandbox.world, 1, 1)
    catch_up(one_engine, workos)
    sandbox.faults.answer("/events", HTML, status=404)
    with pytest.raises(WorkOSError) as caught:
        catch_up(one_engine, workos)
    assert not isinstance(caught.value, NotFoundError)


@pytest.mark.parametrize(("status", "body"), [(200, HTML), (200, b"{}"), (404, HTML), (302, b"")])
def test_foreign_answer_does_not_confirm_the_key(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient, status: int, body: bytes
) -> None:
    mirror_of(one_engine, sandbox, workos, 2)
    sandbox.faults.answer(".*", body, status=status)
    settings = Settings(workos_api_key=sandbox.api_key, workos_client_id=CLIENT_ID)
    with pytest.raises(WorkOSError):
        require_same_environment(one_engine, workos, settings)


def test_unreadable_organization_does_not_stop_worker_start(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient
) -> None:
    mirror_of(one_engine, sandbox, workos, 2)
    sandbox.faults.answer(f"/organizations/{min(sandbox.world.organizations)}$", HTML)
    settings = Settings(workos_api_key=sandbox.api_key, workos_client_id=CLIENT_ID)
    require_same_environment(one_engine, workos, settings)


@pytest.mark.parametrize("status", [401, 403])
def test_workos_401_is_a_rejected_key(sandbox: Sandbox, workos: WorkOSClient, status: int) -> None:
    sandbox.faults.answer(".*", b'{"message":"Unauthorized"}', status=status)
    with pytest.raises(InvalidApiKeyError):
        workos.now()
