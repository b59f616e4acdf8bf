"""Helpers of many tests: sign and post events, drain the inbox, compare the mirror with WorkOS."""

import hashlib
import hmac
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

import click
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import Connection as Transaction
from sqlalchemy import Engine, RowMapping, select
from werkzeug.serving import make_server
from werkzeug.test import TestResponse

from models.database import read_transaction
from models.tables import Event, EventStatus
from models.views import auto_join_domains, workspace_members, workspaces
from worker.inbox.drain import Drain, DrainLimits
from worker.kinds import KINDS
from worker.kinds.connection import Connection
from worker.kinds.domain import Domain
from worker.kinds.membership import Membership
from worker.kinds.user import User

SECRET = "whsec_test_0123456789abcdef"
HERE = Path(__file__).parent
SESSION = HERE / "session"
EVENTS = HERE / "events"
NOON = datetime(2025, 7, 1, 12, tzinfo=UTC)

_made = itertools.count()
_drains: WeakKeyDictionary[Engine, Drain] = WeakKeyDictionary()

JSON = dict[str, Any]
P = ParamSpec("P")
R = TypeVar("R")


def sign(body: bytes, secret: str = SECRET, at: float | None = None) -> str:
    """The `WorkOS-Signature` header for `body`, made at `at` (seconds since the epoch; now if not given)."""
    stamp = str(round((time.time() if at is None else at) * 1000))
    mac = hmac.new(secret.encode(), stamp.encode() + b"." + body, hashlib.sha256).hexdigest()
    return f"t={stamp}, v1={mac}"


def post(endpoint: FlaskClient, event: JSON | bytes, path: str = "/webhooks/workos", **headers: str) -> TestResponse:
    """Post an event with a valid signature."""
    body = event if isinstance(event, bytes) else json.dumps(event).encode()
    return endpoint.post(path, data=body, headers={"WorkOS-Signature": sign(body), **headers})


@contextmanager
def serving(app: Flask) -> Iterator[str]:
    """Serve `app` on 127.0.0.1 in a thread, and yield its address."""
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, name="serving", daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def accept(endpoint: FlaskClient, *events: JSON) -> None:
    """Post events; each must be accepted."""
    for event in events:
        answer = post(endpoint, event)
        assert answer.status_code == 200, answer.get_data(as_text=True)


def apply_all(engine: Engine, limits: DrainLimits | None = None) -> None:
    """Drain the inbox until it is empty. Without `limits`, each engine has one drain, as a process has."""
    drain = Drain(engine, limits) if limits else _drains.setdefault(engine, Drain(engine, DrainLimits()))
    while not drain():
        pass


def session_deliveries() -> list[JSON]:
    """The recorded deliveries, in arrival order: `signature` and `body`."""
    return [json.loads(line) for line in (SESSION / "deliveries.jsonl").read_text().splitlines()]


def session_secret() -> str:
    return (SESSION / "secret.txt").read_text().strip()


def session_truth() -> JSON:
    truth: JSON = json.loads((SESSION / "truth.json").read_text())
    return truth


def sample(type: str) -> JSON:
    """The sample event of one type."""
    event: JSON = json.loads((EVENTS / f"{type}.json").read_text())
    return event


def minute(number: int) -> str:
    """A time in WorkOS's format, `number` minutes after a fixed noon."""
    return (NOON + timedelta(minutes=number)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def made(type: str, at: int = 0, *, event_id: str | None = None, **data: Any) -> JSON:
    """The sample event of one type with a new id, as of minute `at`, with `data` changed."""
    event = sample(type)
    event |= {"id": event_id or f"event_made_{next(_made):06d}", "created_at": minute(at)}
    target = event["data"].get("organization_domain", event["data"])
    target |= {"updated_at": minute(at)} | data
    return event


def access(engine: Engine) -> set[tuple[str, str, str]]:
    """Current access as (workspace, user, local role)."""
    return {(row["organization_id"], row["user_id"], row["role"]) for row in rows(engine, workspace_members)}


def joins(engine: Engine) -> set[tuple[str, str]]:
    """Current auto-join domains as (domain, workspace)."""
    return {(row["domain"], row["organization_id"]) for row in rows(engine, auto_join_domains)}


def outcomes(engine: Engine, *events: JSON) -> list[str | None]:
    """The outcome of each event."""
    return [event_row(engine, event["id"])["outcome"] for event in events]


def event_row(engine: Engine, event_id: str) -> RowMapping:
    with read_transaction(engine) as tx:
        return tx.execute(select(Event.__table__).where(Event.id == event_id)).mappings().one()


def read(engine: Engine, query: Callable[Concatenate[Transaction, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
    """What `query` returns in a read transaction."""
    with read_transaction(engine) as tx:
        return query(tx, *args, **kwargs)


def rows(engine: Engine, source: Any) -> list[JSON]:
    """All rows of a table class or view, as dicts."""
    with read_transaction(engine) as tx:
        return [dict(row) for row in tx.execute(select(getattr(source, "__table__", source))).mappings()]


def mirrored(engine: Engine) -> dict[str, list[JSON]]:
    """The whole mirror, sorted by id, without `revision` and `touched_at`."""
    return {
        name: sorted(
            ({k: v for k, v in row.items() if k not in ("revision", "touched_at")} for row in rows(engine, kind.table)),
            key=lambda row: str(row["id"]),
        )
        for name, kind in KINDS.items()
    }


def statuses(engine: Engine) -> dict[str, int]:
    """Status → number of events."""
    found = [row["status"] for row in rows(engine, Event)]
    return {status.value: found.count(status) for status in EventStatus if status in found}


def differences(engine: Engine, truth: JSON) -> list[str]:
    """Differences between the mirror and `truth` (WorkOS's listings), one line each; empty if they are equal."""
    live = {row["organization_id"]: row for row in rows(engine, workspaces) if row["state"] == "active"}
    names = ("name", *KEYS)
    found = _compare(
        "workspace", _of_each(names, truth["organizations"]), _of_each(names, live.values(), "organization_id")
    )
    emails = {user["id"]: user["email"] for user in truth["users"]}
    stored = {row["id"]: row for row in rows(engine, User) if row["deleted_by"] is None}
    person = ("email", "external_id", "metadata")
    found += _compare("user", _of_each(person, truth["users"]), _of_each(person, stored.values()))
    found += _compare("membership", _true_memberships(truth), _stored_memberships(engine, set(live), set(stored)))
    found += _compare("member", _true_members(truth, emails), _stored_members(engine))
    found += _compare("domain", _true_domains(truth), _stored_domains(engine, set(live)))
    if "connections" in truth:
        found += _compare("connection", _true_connections(truth), _stored_connections(engine, set(live)))
    if "invitations" in truth:
        found += _compare("invitation", _true_invitations(truth), _stored_invitations(engine, set(live)))
    if "permissions" in truth:
        found += _compare("permission", {p["slug"]: p["name"] for p in truth["permissions"]}, _permissions(engine))
    joins = {(row["domain"], row["organization_id"]): True for row in rows(engine, auto_join_domains)}
    return found + _compare("auto-join", _true_joins(truth), joins)


KEYS = ("external_id", "stripe_customer_id", "metadata")
"""Fields of an organization that the product sets. The mirror has null for a missing or empty one."""


def _of_each(names: tuple[str, ...], found: Iterable[JSON], key: str = "id") -> dict[str, Any]:
    return {row[key]: tuple(row.get(name) or None for name in names) for row in found}


def _compare(what: str, workos: dict[Any, Any], mirror: dict[Any, Any]) -> list[str]:
    return [
        f"{what} {key}: WorkOS {workos.get(key, 'has none')!r}, mirror {mirror.get(key, 'has none')!r}"
        for key in sorted(workos.keys() | mirror.keys())
        if workos.get(key) != mirror.get(key)
    ]


def _true_memberships(truth: JSON) -> dict[str, Any]:
    return {
        m["id"]: (m["organization_id"], m["user_id"], _slugs(m), m["status"], m.get("custom_attributes") or None)
        for m in truth["memberships"]
    }


def _slugs(membership: JSON) -> list[str]:
    """All role slugs of a membership. The mirror chooses `workos_role` from them."""
    return sorted({membership["role"]["slug"], *(role["slug"] for role in membership.get("roles") or [])})


def _stored_memberships(engine: Engine, organizations: set[str], users: set[str]) -> dict[str, Any]:
    # The children of a deleted parent are gone with it, whether or not WorkOS said so one by one.
    return {
        m["id"]: (m["organization_id"], m["user_id"], m["workos_roles"], m["status"], m["custom_attributes"])
        for m in rows(engine, Membership)
        if m["deleted_by"] is None and m["organization_id"] in organizations and m["user_id"] in users
    }


def _true_members(truth: JSON, emails: dict[str, str]) -> dict[Any, Any]:
    return {
        (m["organization_id"], m["user_id"]): (emails[m["user_id"]], true_role(m))
        for m in truth["memberships"]
        if m["status"] == "active"
    }


def true_role(membership: JSON) -> str:
    """The local role of a membership of WorkOS: the highest of its roles, not the one in `role`."""
    return "admin" if "admin" in _slugs(membership) else "member"


def _stored_members(engine: Engine) -> dict[Any, Any]:
    return {
        (row["organization_id"], row["user_id"]): (row["email"], row["role"]) for row in rows(engine, workspace_members)
    }


def _true_domains(truth: JSON) -> dict[str, Any]:
    return {
        d["id"]: (d["organization_id"], d["domain"], d["state"]) for o in truth["organizations"] for d in o["domains"]
    }


def _stored_domains(engine: Engine, organizations: set[str]) -> dict[str, Any]:
    return {
        d["id"]: (d["organization_id"], d["domain"], d["verification"])
        for d in rows(engine, Domain)
        if d["deleted_by"] is None and d["organization_id"] in organizations
    }


def _true_connections(truth: JSON) -> dict[str, Any]:
    return {c["id"]: (c["organization_id"], c["connection_type"], c["state"]) for c in truth["connections"]}


def _stored_connections(engine: Engine, organizations: set[str]) -> dict[str, Any]:
    return {
        c["id"]: (c["organization_id"], c["connection_type"], c["status"])
        for c in rows(engine, Connection)
        if c["deleted_by"] is None and c["organization_id"] in organizations
    }


def _true_invitations(truth: JSON) -> dict[str, Any]:
    names = ("organization_id", "email", "state", "expires_at", "accepted_user_id")
    # Pending and expired differ only by the time.
    shown = (i | {"state": "pending" if i["state"] == "expired" else i["state"]} for i in truth["invitations"])
    return {i["id"]: tuple(i[name] for name in names) for i in shown}


def _stored_invitations(engine: Engine, organizations: set[str]) -> dict[str, Any]:
    names = ("organization_id", "email", "status", "expires_at", "accepted_user_id")
    return {
        i["id"]: tuple(_text(i[name]) for name in names)
        for i in rows(engine, KINDS["invitation"].table)
        if i["deleted_by"] is None and i["organization_id"] in {None, *organizations}
    }


def _text(value: Any) -> Any:
    """A time as WorkOS writes it; any other value unchanged."""
    is_time = isinstance(value, datetime)
    return value.isoformat(timespec="milliseconds").replace("+00:00", "Z") if is_time else value


def _permissions(engine: Engine) -> dict[str, Any]:
    return {p["id"]: p["name"] for p in rows(engine, KINDS["permission"].table) if p["deleted_by"] is None}


def _true_joins(truth: JSON) -> dict[Any, Any]:
    holders: dict[str, set[str]] = {}
    for organization in truth["organizations"]:
        for domain in organization["domains"]:
            if domain["state"] in {"verified", "legacy_verified"}:
                holders.setdefault(domain["domain"].lower(), set()).add(organization["id"])
    return {(domain, *owners): True for domain, owners in holders.items() if len(owners) == 1}


def commands(group: click.Group, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command and group of a command line, with the words that select it."""
    yield path, group
    for name in group.list_commands(context := click.Context(group)):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)
        else:
            yield (*path, name), command
