"""The role map: a change remaps existing members, even after an interruption, and applies to later events."""

from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import Engine, select

from models.database import in_transaction, read_transaction
from models.tables import Change, MirrorState
from tests.support import accept, access, apply_all, made, mirrored, rows
from tests.support.mirror import ORG
from worker.kinds.membership import Membership
from worker.mirror import role_map
from worker.mirror.role_map import adopt

DEFAULT = {"admin": "admin", "member": "member"}
OWNERS = DEFAULT | {"owner": "admin"}


@pytest.fixture
def owners(endpoint: FlaskClient, engine: Engine) -> None:
    """A workspace with five owners and a member."""
    accept(endpoint, made("organization.created"))
    for n in range(6):
        slug = {"slug": "owner" if n < 5 else "member"}
        accept(
            endpoint,
            made("user.created", id=f"user_{n}"),
            made("organization_membership.updated", id=f"om_{n}", user_id=f"user_{n}", role=slug, roles=[slug]),
        )
    apply_all(engine)


def members(*admins: int) -> set[tuple[str, str, str]]:
    return {(ORG, f"user_{n}", "admin" if n in admins else "member") for n in range(6)}


pytestmark = pytest.mark.usefixtures("owners")


def test_changed_role_map_updates_members_and_records_changes(engine: Engine) -> None:
    assert access(engine) == members()
    known = len(rows(engine, Change))
    assert adopt(engine, OWNERS) == 5
    assert access(engine) == members(0, 1, 2, 3, 4)
    of_map, *changes = rows(engine, Change)[known:]
    assert (of_map["kind"], of_map["before"], of_map["after"]) == ("role_map", {"roles": DEFAULT}, {"roles": OWNERS})
    assert [(row["object_id"], row["cause"], row["cause_id"]) for row in changes] == [
        (f"om_{n}", "settings", "ROLE_MAP") for n in range(5)
    ]
    assert {(row["before"]["role"], row["after"]["role"]) for row in changes} == {("member", "admin")}
    assert {row["organization_id"] for row in changes} == {ORG}


def test_same_role_map_changes_nothing(engine: Engine) -> None:
    adopt(engine, OWNERS)
    before = mirrored(engine), rows(engine, Change)
    assert adopt(engine, OWNERS) == 0
    assert (mirrored(engine), rows(engine, Change)) == before


def test_reverted_role_map_restores_roles(engine: Engine) -> None:
    before = mirrored(engine)
    adopt(engine, OWNERS)
    assert adopt(engine, DEFAULT) == 5
    assert mirrored(engine) == before


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_interrupted_remapping_resumes(engine: Engine, monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    monkeypatch.setattr(role_map, "BATCH", 2)
    in_transaction(engine, role_map._store, OWNERS, None)
    for _ in range(steps):
        in_transaction(engine, role_map._remap_batch)
    assert access(engine) == members(*range(2 * steps))
    [place] = [row["remap_after"] for row in rows(engine, MirrorState)]
    in_transaction(engine, role_map._store, OWNERS, None)
    assert [row["remap_after"] for row in rows(engine, MirrorState)] == [place]
    assert adopt(engine, OWNERS) == 5 - 2 * steps
    assert access(engine) == members(0, 1, 2, 3, 4)
    changed = [row["kind"] for row in rows(engine, Change) if row["cause"] == "settings"]
    assert sorted(changed) == [*["membership"] * 5, "role_map"]


def test_new_map_restarts_interrupted_remapping(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(role_map, "BATCH", 2)
    in_transaction(engine, role_map._store, OWNERS, None)
    in_transaction(engine, role_map._remap_batch)
    assert adopt(engine, DEFAULT) == 2
    assert access(engine) == members()


def test_later_events_use_new_map(endpoint: FlaskClient, engine: Engine) -> None:
    adopt(engine, OWNERS)
    owner = {"slug": "owner"}
    accept(endpoint, made("organization_membership.updated", 5, id="om_5", user_id="user_5", role=owner, roles=[owner]))
    apply_all(engine)
    assert access(engine) == members(0, 1, 2, 3, 4, 5)


def test_remapping_changes_no_version(endpoint: FlaskClient, engine: Engine) -> None:
    def versions() -> list[Any]:
        with read_transaction(engine) as tx:
            query = select(Membership.updated_at, Membership.event_at, Membership.event_id).order_by(Membership.id)
            return [tuple(row) for row in tx.execute(query)]

    before = versions()
    adopt(engine, OWNERS)
    assert versions() == before


def test_active_map_is_stored(engine: Engine) -> None:
    adopt(engine, OWNERS)
    assert [(row["role_map"], row["remap_after"]) for row in rows(engine, MirrorState)] == [(OWNERS, None)]
