"""A database with something for each command to print."""

from typing import Any

from sqlalchemy import Engine, insert, select, update

from models.database import in_transaction, read_transaction
from models.tables import Change, Drift, Event, Hook, HookDelivery, Join, Run
from models.types import db_now, db_now_plus
from tests.support import JSON, made
from tests.support.actors import by
from tests.support.auto_join import apply_events, mark_as_filled
from worker.mirror import auto_join_policy
from worker.repair.resync.resync import start
from worker.sandbox import World, play

LONG_NAME = "Rhabarberbarbara " * 12
ERROR = "HTTP 503 from https://app.acme.example/hooks/workos-sync after 10.0 s\nupstream connect error"


def fill(engine: Engine, events: int = 150) -> JSON:
    """Fill an empty database; returns ids in it: `organization`, `user`, `email`, `event`, `failed`, `run`."""
    world = World(seed=3)
    play(world, events, companies=4, seed=3)
    organization = world.create_organization(LONG_NAME.strip(), domains=[("long.example", "verified")])["id"]
    user = world.create_user(f"{'x' * 60}@long.example", email_verified=True)
    world.create_user("not.yet.a.member@long.example", email_verified=True)
    world.create_membership(organization, user["id"], role="admin")
    world.create_invitation("guest@long.example", organization_id=organization)
    mark_as_filled(engine)
    apply_events(engine, world.events)
    failed = [made("user.updated", event_id=world.new_id("event"), id=None) for _ in range(3)]
    failed.append(made("organization_membership.created", event_id=world.new_id("event"), user_id=7))
    apply_events(engine, failed)
    auto_join_policy.set_workspace(engine, organization, by("ann", "no contractors"), default_role="admin")
    auto_join_policy.block(engine, organization, user["id"], by("ann", "left\tthe\ncompany"))
    run_id = _resynced(engine, world)
    _hooks_failed(engine)
    _joined(engine, organization, user["id"])
    event = next(e["id"] for e in world.events if e["event"] == "organization_membership.created")
    made_ids = {"event": event, "failed": failed[0]["id"], "run": run_id}
    return {"organization": organization, "user": user["id"], "email": user["email"], **made_ids}


def _execute(engine: Engine, statement: Any, rows: list[JSON] | None = None) -> None:
    in_transaction(engine, lambda tx: tx.execute(statement, rows) if rows else tx.execute(statement))


def _resynced(engine: Engine, world: World) -> str:
    """A failed resync, and one that found differences; returns the id of the second."""
    failed = start(engine, by("ann"))
    error = "/user_management/organization_memberships: ServerError 500 after 5 attempts"
    ended: JSON = {"status": "failed", "finished_at": db_now(), "error": error}
    _execute(engine, update(Run).where(Run.id == failed).values(ended))
    run_id = start(engine, by("bob", "after the outage of 10:15"))
    found = {"run_id": run_id, "kind": "user"}
    users = list(world.users)[:3]
    different: JSON = {
        "finding": "different",
        "action": "repaired",
        "fields": {"email": ["a@x.example", "b@x.example"]},
    }
    withheld: JSON = {"finding": "extra", "action": "withheld", "fields": None}
    rows = [found | {"object_id": users[0]} | different]
    rows += [found | {"object_id": id} | withheld for id in users[1:]]
    _execute(engine, insert(Drift), rows)
    ended = {"status": "done", "created_at": db_now_plus(-65), "finished_at": db_now(), "calls": 31, "done": 5}
    _execute(engine, update(Run).where(Run.id == run_id).values(ended))
    return run_id


def _hooks_failed(engine: Engine) -> None:
    with read_transaction(engine) as tx:
        changes = tx.execute(select(Change.id, Change.kind, Change.object_id).order_by(Change.id).limit(5)).all()
    _execute(engine, insert(Hook).values(name="crm", cursor=changes[-1].id, delivered_at=db_now(), delivered=3))
    failed = {"hook": "crm", "status": "failed", "attempts": 12, "error": "HTTP 503", "traceback": ERROR}
    rows = [failed | {"change_id": c.id, "kind": c.kind, "object_id": c.object_id} for c in changes]
    _execute(engine, insert(HookDelivery), rows)


def _joined(engine: Engine, organization: str, user: str) -> None:
    with read_transaction(engine) as tx:
        event = tx.execute(select(Event.id).order_by(Event.id).limit(1)).scalar_one()
    of_join = {"organization_id": organization, "cause": "event", "cause_id": event}
    failed = {"state": "failed", "error": "ROLE_MAP has no WorkOS role for admin", "attempts": 3}
    rows = [of_join | failed | {"user_id": f"{user[:-1]}Q"}]
    _execute(engine, insert(Join).values(settled_at=db_now()), rows)
