"""What operators read: events, runs, members. Times are aware and in UTC."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Engine, RowMapping, and_, exists, false, func, or_, select

from models.database import read_transaction
from models.tables import (
    TABLES,
    Change,
    Domain,
    Drift,
    Event,
    EventStatus,
    Kind,
    Organization,
    Role,
    Run,
    RunStatus,
    Task,
    User,
)
from models.tables import (
    Connection as SignIn,
)
from models.types import inline_literal
from models.views import auto_join_domains, sign_in_methods, workspace_members, workspaces
from worker.mirror.change_feed import as_json
from worker.reports.access import domain_states

STEP = 500
"""Rows of a report read at once."""
MAX_LEVELS = 100
"""Of a payload that is shown as JSON; readers and writers of JSON give up at some 200 to 1,000."""

LISTED = (
    Event.id,
    Event.type,
    Event.status,
    Event.outcome,
    Event.object_id,
    Event.organization_id,
    Event.received_at,
    Event.deliveries,
    Event.attempts,
    Event.error,
)


def list_events(
    engine: Engine,
    *,
    status: str | None = None,
    type: str | None = None,
    organization_id: str | None = None,
    fingerprint: str | None = None,
    after: str | None = None,
    limit: int = 50,
) -> list[dict[str, Any]]:
    """Return the newest events that match all the filters given, newest first; those older than `after`, an id."""
    query = select(*LISTED).order_by(Event.received_at.desc(), Event.id.desc()).limit(limit)
    if after is not None:
        query = query.where(_before(Event.received_at, Event.id, after))
    if status is not None:
        query = query.where(Event.status == inline_literal(status) if status in list(EventStatus) else false())
    others = (Event.type, type), (Event.organization_id, organization_id), (Event.fingerprint, fingerprint)
    for column, value in others:
        if value is not None:
            query = query.where(column == value)
    with read_transaction(engine) as tx:
        return [dict(row) for row in tx.execute(query).mappings()]


def _before(at: Any, id: Any, last: str) -> ColumnElement[bool]:
    """Whether a row comes after the row `last` in a listing of the newest."""
    then = select(at).where(id == last).scalar_subquery()
    return or_(at < then, and_(at == then, id < last))


def failures(engine: Engine) -> list[dict[str, Any]]:
    """Return the failed events by the fingerprint of their error, most first, with an example of each."""
    number = func.count()
    shown = (Event.fingerprint, number.label("events"), func.min(Event.type).label("type"))
    times = (func.min(Event.received_at).label("first"), func.max(Event.received_at).label("last"))
    example = (func.min(Event.id).label("example"), func.min(Event.error).label("error"))
    failed = select(*shown, *times, *example).where(Event.status == inline_literal(EventStatus.FAILED))
    with read_transaction(engine) as tx:
        found = tx.execute(failed.group_by(Event.fingerprint).order_by(number.desc(), Event.fingerprint))
        return [dict(row) for row in found.mappings()]


def show_event(engine: Engine, event_id: str) -> dict[str, Any] | None:
    """Return all that is known of one event, its payload and what it changed; None if the id is unknown."""
    with read_transaction(engine) as tx:
        row = tx.execute(select(Event.__table__).where(Event.id == event_id)).mappings().one_or_none()
        if row is None:
            return None
        changes = tx.execute(
            select(Change.__table__)
            .where(Change.object_id == row["object_id"], Change.cause == "event", Change.cause_id == event_id)
            .order_by(Change.id)
        ).mappings()
        return {**row, "body": _payload(row), "changes": [dict(change) for change in changes]}


def _payload(row: RowMapping) -> Any:
    if row["body"] is None:
        return None
    try:
        payload = json.loads(row["body"])
        json.dumps(payload, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        payload = None
    # As text where not every reader would take it: infinite numbers, halves of characters, nesting without end.
    return row["body"].decode("utf-8", "replace") if payload is None or _deeper(payload, MAX_LEVELS) else payload


def _deeper(value: Any, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return bool(inner) and (levels == 0 or any(_deeper(each, levels - 1) for each in inner))


def workspace(engine: Engine, organization_id: str) -> dict[str, Any] | None:
    """Return a workspace, live or deleted; None if it is unknown."""
    with read_transaction(engine) as tx:
        row = tx.execute(select(workspaces).where(workspaces.c.organization_id == organization_id)).mappings()
        found = row.one_or_none()
        return dict(found) if found else None


def list_workspaces(
    engine: Engine, *, state: str | None = None, name: str | None = None, after: str | None = None, limit: int = 50
) -> list[dict[str, Any]]:
    """Return workspaces by id: in this state, with this in the name, and those after an id, if given."""
    view = workspaces.c
    query = select(workspaces).order_by(view.organization_id).limit(limit)
    if state is not None:
        query = query.where(view.state == state)
    if name is not None:
        query = query.where(view.name.icontains(name, autoescape=True))
    if after is not None:
        query = query.where(view.organization_id > after)
    with read_transaction(engine) as tx:
        return [dict(row) for row in tx.execute(query).mappings()]


def list_access(
    engine: Engine, filters: Mapping[str, str], *, after: str | None = None, limit: int = 50
) -> list[dict[str, Any]]:
    """Return who has access now, by membership id.

    Args:
        engine: the database.
        filters: values of `organization_id`, `user_id` or `email`, all of which hold.
        after: only those after this membership id.
        limit: the most to return.
    """
    view = workspace_members.c
    query = select(workspace_members).order_by(view.membership_id).limit(limit)
    for name, value in filters.items():
        query = query.where(view[name] == value)
    if after is not None:
        query = query.where(view.membership_id > after)
    with read_transaction(engine) as tx:
        return [dict(row) for row in tx.execute(query).mappings()]


def list_domains(
    engine: Engine,
    organization_id: str | None = None,
    *,
    off: bool = False,
    after: str | None = None,
    limit: int = 50,
) -> list[dict[str, Any]]:
    """Return live domains by id, with whether they auto-join and why: of a workspace, and after an id, if given.

    `off`: only those by which nobody joins.
    """
    which: list[ColumnElement[bool]] = [Domain.deleted_by.is_(None)]
    if organization_id is not None:
        which.append(Domain.organization_id == organization_id)
    if after is not None:
        which.append(Domain.id > after)
    if off:
        view = auto_join_domains.c
        joining = (view.domain == Domain.normalized, view.organization_id == Domain.organization_id)
        which.append(~exists().where(*joining))
    with read_transaction(engine) as tx:
        ids = list(tx.execute(select(Domain.id).where(*which).order_by(Domain.id).limit(limit)).scalars())
        return sorted(domain_states(tx, Domain.id.in_(ids)), key=lambda row: str(row["id"]))


def list_sign_in(
    engine: Engine, organization_id: str | None = None, *, after: str | None = None, limit: int = 50
) -> list[dict[str, Any]]:
    """Return single sign-on that works now, by connection id: of a workspace, and after an id, if given."""
    view = sign_in_methods.c
    query = select(sign_in_methods).order_by(view.connection_id).limit(limit)
    if organization_id is not None:
        query = query.where(view.organization_id == organization_id)
    if after is not None:
        query = query.where(view.connection_id > after)
    with read_transaction(engine) as tx:
        return [dict(row) for row in tx.execute(query).mappings()]


def list_members(engine: Engine, organization_id: str) -> dict[str, Any] | None:
    """Return a workspace and the people who have access to it now; None if the workspace is unknown."""
    with read_transaction(engine) as tx:
        workspace = (
            tx.execute(select(workspaces).where(workspaces.c.organization_id == organization_id))
            .mappings()
            .one_or_none()
        )
        if workspace is None:
            return None
        members = tx.execute(
            select(workspace_members)
            .where(workspace_members.c.organization_id == organization_id)
            .order_by(workspace_members.c.email, workspace_members.c.user_id)
        ).mappings()
        return {**workspace, "members": [dict(member) for member in members]}


def list_runs(
    engine: Engine, limit: int = 50, *, task: Task | None = None, after: str | None = None
) -> list[dict[str, Any]]:
    """Return the newest runs, newest first; of one task, if it is named; those older than `after`, an id."""
    query = select(Run.__table__).order_by(Run.created_at.desc(), Run.id.desc()).limit(limit)
    if task is not None:
        query = query.where(Run.task == task)
    if after is not None:
        query = query.where(_before(Run.created_at, Run.id, after))
    with read_transaction(engine) as tx:
        return [dict(row) for row in tx.execute(query).mappings()]


def run(engine: Engine, run_id: str, *, task: Task | None = None) -> dict[str, Any] | None:
    """Return a run with its findings counted and the number of deletions it withholds; None if there is none such."""
    with read_transaction(engine) as tx:
        row = tx.execute(select(Run.__table__).where(Run.id == run_id)).mappings().one_or_none()
        if row is None or task not in (None, row["task"]):
            return None
        counted = select(Drift.finding, func.count()).where(Drift.run_id == run_id).group_by(Drift.finding)
        held = select(func.count()).select_from(Drift).where(Drift.run_id == run_id, Drift.action == "withheld")
        findings = {str(finding): number for finding, number in tx.execute(counted)}
        return {**row, "findings": findings, "withheld": tx.execute(held).scalar_one()}


def drift(engine: Engine, run_id: str, most: int | None = None) -> Iterator[dict[str, Any]]:
    """Yield what a run found different, by kind and id, `most` of it: a first resync finds the whole mirror missing."""
    query = select(Drift.__table__).where(Drift.run_id == run_id).order_by(Drift.kind, Drift.object_id).limit(most)
    with read_transaction(engine) as tx:
        for row in tx.execute(query, execution_options={"yield_per": STEP}).mappings():
            yield dict(row)


LABELS = {
    Kind.ORGANIZATION: Organization.name,
    Kind.USER: User.email,
    Kind.DOMAIN: Domain.domain,
    Kind.ROLE: Role.slug,
    Kind.CONNECTION: SignIn.name,
}
"""What people know an object by."""


def labelled(engine: Engine, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return rows of drift with `label`: what people know the object by, as far as the mirror knows."""
    labels: dict[tuple[str, str], str | None] = {}
    with read_transaction(engine) as tx:
        for kind, label in LABELS.items():
            table = TABLES[kind]
            ids = [row["object_id"] for row in rows if row["kind"] == kind]
            found = tx.execute(select(table.id, label).where(table.id.in_(ids))) if ids else ()
            labels |= {(kind, id): shown for id, shown in found}
    return [{**row, "label": labels.get((row["kind"], row["object_id"]))} for row in rows]


def approval(engine: Engine, run_id: str) -> dict[str, Any] | None:
    """Return the run that carries out what a run withheld, if one was asked for."""
    query = select(Run.__table__).where(Run.approves == run_id, Run.status != RunStatus.FAILED)
    with read_transaction(engine) as tx:
        row = tx.execute(query.order_by(Run.created_at.desc()).limit(1)).mappings().one_or_none()
        return dict(row) if row else None


def recent_changes(engine: Engine, organization_id: str, limit: int) -> list[dict[str, Any]]:
    """Return the newest changes in a workspace, newest first."""
    query = select(Change.__table__).where(Change.organization_id == organization_id)
    with read_transaction(engine) as tx:
        return [dict(row) for row in tx.execute(query.order_by(Change.id.desc()).limit(limit)).mappings()]


def run_as_json(engine: Engine, run_row: dict[str, Any]) -> Iterator[str]:
    """Yield a run of `run` and its `drift` as the pieces of one JSON document."""
    yield as_json(run_row).removesuffix("\n}") + ',\n  "drift": ['
    before = "\n"
    for row in drift(engine, run_row["id"]):
        yield before + as_json(row)
        before = ",\n"
    yield "]\n}\n"
