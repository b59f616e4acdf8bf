"""Listings of events, workspaces, access, domains, runs and the audit, and the details of one event or run.

A listing returns at most `limit` rows that match all given filters; a filter that is None matches everything. `after`
is the id of the last row of the previous page. Times are aware, in UTC.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import islice
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    FromClause,
    Select,
    Table,
    Text,
    and_,
    cast,
    exists,
    false,
    func,
    or_,
    select,
)
from sqlalchemy.orm import InstrumentedAttribute

from models.addresses import normalize_domain
from models.database import read_transaction
from models.enums import QUEUED
from models.rows import all_rows, one_row, read_rows
from models.tables import (
    Action,
    Audit,
    Cause,
    Change,
    Drift,
    DriftAction,
    Event,
    EventStatus,
    FailedEffect,
    Run,
    RunStatus,
    Task,
    Via,
)
from models.types import Record, inline_literal
from models.views import auto_join_domains, sign_in_methods, workspace_invitations, workspace_members, workspaces
from worker.kinds import KINDS
from worker.kinds.addresses import has_address
from worker.kinds.domain import Domain
from worker.kinds.invitation import Invitation
from worker.kinds.membership import Membership
from worker.kinds.permission import Permission
from worker.kinds.role import Role
from worker.kinds.user import User
from worker.mirror.change_feed import as_json
from worker.mirror.uncertainty import ALL_UNCERTAIN
from worker.repair.resync.coverage import compared
from worker.reports.access import domain_states, invitation_states, uncertain_answers
from worker.reports.past import members, moment_of, with_causes, workspaces_at
from worker.reports.past_workos import members_as_workos, workspace_as_workos
from worker.runs import RUNS

FETCH_SIZE = 500
"""Rows of a report fetched at once."""
MAX_ROLES = 20
"""Roles shown for a permission."""
MAX_DEPTH = 100
"""Nesting of a payload returned as JSON. JSON parsers fail at a depth of about 200 to 1,000."""

LISTED_COLUMNS = (
    *(Event.id, Event.type, Event.status, Event.outcome, Event.object_id, Event.organization_id, Event.received_at),
    *(Event.deliveries, Event.attempts, Event.error),
)


def _page(
    engine: Engine,
    view: Table,
    key: str,
    filters: Mapping[str, str | None],
    after: str | None,
    limit: int,
    *conditions: ColumnElement[bool],
) -> list[Record]:
    """Return a page of a view, sorted by the column `key`."""
    query = select(view).where(*conditions).order_by(view.c[key]).limit(limit)
    if after is not None:
        query = query.where(view.c[key] > after)
    return read_rows(engine, query.filter_by(**_given(filters)))


def _contains(column: ColumnElement[Any], text: str) -> ColumnElement[bool]:
    """Return the condition that a column contains a text in any case."""
    # SQLite ignores the case of ASCII letters only.
    return or_(*(column.icontains(spelled, autoescape=True) for spelled in {text, text.lower(), text.upper()}))


def _given(filters: Mapping[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in filters.items() if value is not None}


# Events


def list_events(
    engine: Engine,
    *,
    status: str | None = None,
    type: str | None = None,
    organization_id: str | None = None,
    fingerprint: str | None = None,
    after: str | None = None,
    limit: int = 50,
) -> list[Record]:
    """Return events, newest first, without their payloads. An unknown `status` matches nothing."""
    query = select(*LISTED_COLUMNS).order_by(Event.received_at.desc(), Event.id.desc()).limit(limit)
    if after is not None:
        query = query.where(_before(Event.received_at, Event.id, after))
    if status is not None:
        query = query.where(Event.status == inline_literal(status) if status in list(EventStatus) else false())
    others = {"type": type, "organization_id": organization_id, "fingerprint": fingerprint}
    return read_rows(engine, query.filter_by(**_given(others)))


def _before(at: InstrumentedAttribute[datetime], id: InstrumentedAttribute[str], last: str) -> ColumnElement[bool]:
    """Return the condition that a row follows the row with id `last` in a listing sorted newest first."""
    last_at = select(at).where(id == last).scalar_subquery()
    return or_(at < last_at, and_(at == last_at, id < last))


def failures(engine: Engine) -> list[Record]:
    """Return failed events grouped by the fingerprint of their error, the largest group first, each with an example."""
    number = func.count()
    group = (Event.fingerprint, number.label("events"), func.min(Event.type).label("type"))
    times = (func.min(Event.received_at).label("first"), func.max(Event.received_at).label("last"))
    example = (func.min(Event.id).label("example"), func.min(Event.error).label("error"))
    failed = select(*group, *times, *example).where(Event.status == inline_literal(EventStatus.FAILED))
    return read_rows(engine, failed.group_by(Event.fingerprint).order_by(number.desc(), Event.fingerprint))


def show_event(engine: Engine, event_id: str) -> Record | None:
    """Return one event with its payload and changes; None if the id is unknown."""
    with read_transaction(engine) as tx:
        event = one_row(tx, select(Event.__table__).where(Event.id == event_id))
        if event is None:
            return None
        of_event = (Change.object_id == event["object_id"], Change.cause == Cause.EVENT, Change.cause_id == event_id)
        changes = all_rows(tx, select(Change.__table__).where(*of_event).order_by(Change.id))
    return event | {"body": _payload(event["body"]), "changes": changes}


def _payload(body: bytes | None) -> object:
    """Return a payload, or its text if strict JSON parsers would fail: NaN, infinity, lone surrogates, deep nesting."""
    if body is None:
        return None
    try:
        payload = json.loads(body)
        json.dumps(payload, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        payload = None
    return body.decode("utf-8", "replace") if payload is None or _is_deeper(payload, MAX_DEPTH) else payload


def _is_deeper(value: object, depth: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return bool(inner) and (depth == 0 or any(_is_deeper(each, depth - 1) for each in inner))


# The mirror


def workspace(engine: Engine, organization_id: str) -> Record | None:
    """Return a workspace, which may be deleted; None if the id is unknown."""
    with read_transaction(engine) as tx:
        return one_row(tx, select(workspaces).filter_by(organization_id=organization_id))


def list_workspaces(
    engine: Engine,
    *,
    state: str | None = None,
    external_id: str | None = None,
    name: str | None = None,
    domain: str | None = None,
    after: str | None = None,
    limit: int = 50,
) -> list[Record]:
    """Return workspaces sorted by id: in a state (`active` or `deleted`), or whose name contains a text in any case.

    With `domain`, in any spelling, only those that have it, verified or not.
    """
    which = [] if name is None else [_contains(workspaces.c.name, name)]
    if domain is not None:
        has_it = (Domain.normalized == normalize_domain(domain), Domain.deleted_by.is_(None))
        which.append(workspaces.c.organization_id.in_(select(Domain.organization_id).where(*has_it)))
    filters = {"state": state, "external_id": external_id}
    return _page(engine, workspaces, "organization_id", filters, after, limit, *which)


def with_counts(engine: Engine, rows: list[Record]) -> list[Record]:
    """Return rows of workspaces, each with its number of `members`, who have access, and of pending `invitations`."""
    ids = [row["organization_id"] for row in rows]
    of, sent_for = workspace_members.c.organization_id, workspace_invitations.c.organization_id
    pending = select(sent_for, func.count().label("number")).where(workspace_invitations.c.status == "pending")
    queries = {
        "members": select(of, func.count().label("number")).where(of.in_(ids)).group_by(of),
        "invitations": pending.where(sent_for.in_(ids)).group_by(sent_for),
    }
    with read_transaction(engine) as tx:
        found = {
            name: {each["organization_id"]: each["number"] for each in all_rows(tx, query)}
            for name, query in queries.items()
        }
    return [row | {name: numbers.get(row["organization_id"], 0) for name, numbers in found.items()} for row in rows]


def list_access(
    engine: Engine,
    filters: Mapping[str, str],
    *,
    at: datetime | None = None,
    as_workos: bool = False,
    after: str | None = None,
    limit: int = 50,
) -> list[Record]:
    """Return the memberships that give access, sorted by id, by `email` or columns of the view.

    `email` is a current address of a person in any spelling. With `at`, an aware time, the answer is what the mirror
    answered then, with the columns `worker.reports.past.CAUSE`; or, with `as_workos`, who had access as WorkOS had it,
    as `worker.reports.past_workos.members_as_workos`. Without a filter, both are slow.

    Raises:
        FutureTimeError: `at` has not come yet.
        NotKeptError: `at` is too long ago.
    """
    of_membership = {name: value for name, value in filters.items() if not name.endswith("external_id")}
    which = _filter(Membership.__table__, of_membership)
    external_ids = filters.items() - of_membership.items()
    with read_transaction(engine) as tx:
        if at is not None and as_workos:
            found = members_as_workos(tx, at, *which)
            matching = (row for row in found if all(row[name] == value for name, value in external_ids))
            return list(islice((row for row in matching if row["membership_id"] > (after or "")), limit))
        moment = None if at is None else moment_of(tx, at)
        view = members(tx, moment, *which)
        query = select(view).where(*_filter(view, filters)).order_by(view.c.membership_id).limit(limit)
        rows = all_rows(tx, query if after is None else query.where(view.c.membership_id > after))
        return rows if moment is None else with_causes(tx, rows, moment)


def _filter(source: FromClause, filters: Mapping[str, str]) -> list[ColumnElement[bool]]:
    """Return the conditions on a table with these columns and `user_id`, by which `list_access` filters."""
    of_email = select(User.id).where(has_address(User, filters.get("email", "")))
    return [
        source.c.user_id.in_(of_email) if name == "email" else source.c[name] == value
        for name, value in filters.items()
    ]


def list_people(engine: Engine, email_part: str, limit: int = 50) -> list[Record]:
    """Return people whose e-mail address contains `email_part`, sorted by address; deleted people too.

    A part with a whole domain, or a whole address, may have any spelling.
    """
    local, at, host = email_part.rpartition("@")
    domain = normalize_domain(host)
    found = _contains(User.__table__.c.email, email_part)
    if domain is not None:
        found |= User.email_normalized.contains(f"{local.lower()}{at}{domain}", autoescape=True)
    people = select(User.id, User.email, User.deleted_by, User.updated_at).order_by(User.email, User.id).limit(limit)
    # Without a part, also people whose address is not known.
    return read_rows(engine, people.where(found) if email_part else people)


def list_domains(
    engine: Engine, organization_id: str | None = None, *, off: bool = False, after: str | None = None, limit: int = 50
) -> list[Record]:
    """Return domains that are not deleted, sorted by id, with their auto-join state and the reason.

    With `off`, only domains that do not auto-join.
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
) -> list[Record]:
    """Return active single sign-on connections, sorted by id."""
    return _page(engine, sign_in_methods, "connection_id", {"organization_id": organization_id}, after, limit)


def list_invitations(
    engine: Engine, filters: Mapping[str, str], *, after: str | None = None, limit: int = 50
) -> list[Record]:
    """Return invitations to live workspaces, sorted by id, by `organization_id`, `status` or `email`.

    `email` is an address in any spelling.
    """
    others = {name: value for name, value in filters.items() if name != "email"}
    sent = select(Invitation.id).where(has_address(Invitation, filters.get("email", "")))
    which = [workspace_invitations.c.invitation_id.in_(sent)] if "email" in filters else []
    return _page(engine, workspace_invitations, "invitation_id", others, after, limit, *which)


def list_invitation_blocks(engine: Engine, organization_id: str, limit: int = 50) -> list[Record]:
    """Return the invitations to a workspace, newest first, with their status now and whether they block auto-join."""
    here = (Invitation.organization_id == organization_id, Invitation.deleted_by.is_(None))
    with read_transaction(engine) as tx:
        return invitation_states(tx, *here, limit=limit)


def list_members(
    engine: Engine, organization_id: str, at: datetime | None = None, *, as_workos: bool = False
) -> Record | None:
    """Return a workspace with its `members`, who have access, and its pending `invitations`, sorted by address.

    None if the workspace is unknown. With `at`, all of it is what the mirror answered at that time, or what WorkOS had,
    as in `list_access`, whose errors it raises, and there are no `invitations`.
    """
    with read_transaction(engine) as tx:
        if at is not None and as_workos:
            had_access = members_as_workos(tx, at, Membership.organization_id == organization_id)
            sorted_rows = sorted(had_access, key=lambda row: (row["email"] or "", row["user_id"]))
            had = workspace_as_workos(tx, at, organization_id)
            return had and had | {"members": sorted_rows}
        moment = None if at is None else moment_of(tx, at)
        found = one_row(tx, workspaces_at(moment, organization_id))
        view = members(tx, moment, Membership.organization_id == organization_id)
        in_workspace = select(view).where(view.c.organization_id == organization_id)
        rows = all_rows(tx, in_workspace.order_by(view.c.email, view.c.user_id))
        if found is None:
            return None
        if moment is not None:
            return found | {"members": with_causes(tx, rows, moment)}
        pending = select(workspace_invitations).filter_by(organization_id=organization_id, status="pending")
        invited = workspace_invitations.c
        by_address = pending.order_by(invited.email, invited.invitation_id)
        return found | {"members": rows, "invitations": all_rows(tx, by_address)}


def list_uncertain(engine: Engine, organization_id: str) -> list[Record]:
    """Return why bounded answers about a workspace are stale, as `worker.reports.access.uncertain_answers`."""
    about = or_(FailedEffect.organization_id == organization_id, and_(*ALL_UNCERTAIN))
    with read_transaction(engine) as tx:
        return uncertain_answers(tx, about)


def list_permissions(engine: Engine, *, after: str | None = None, limit: int = 50) -> list[Record]:
    """Return live permissions, sorted by slug, each with `roles`: the ids of live roles that grant it.

    Roles of the environment come first. At most `MAX_ROLES` are returned for each permission.
    """
    live = select(Permission.__table__).where(Permission.deleted_by.is_(None)).order_by(Permission.id).limit(limit)
    with read_transaction(engine) as tx:
        found = all_rows(tx, live.where(Permission.id > (after or "")))
        return [row | {"roles": list(tx.execute(_roles_granting(row["id"])).scalars())} for row in found]


def _roles_granting(slug: str) -> Select[str]:
    grants = cast(Role.permissions, Text).contains(json.dumps(slug), autoescape=True)
    in_order = (Role.organization_id.is_not(None), Role.id)
    return select(Role.id).where(Role.deleted_by.is_(None), grants).order_by(*in_order).limit(MAX_ROLES)


def recent_changes(engine: Engine, organization_id: str, limit: int) -> list[Record]:
    """Return the newest changes in a workspace, newest first."""
    of_workspace = select(Change.__table__).where(Change.organization_id == organization_id)
    return read_rows(engine, of_workspace.order_by(Change.id.desc()).limit(limit))


# Runs


def list_runs(
    engine: Engine,
    limit: int = 50,
    *,
    task: str | None = None,
    status: str | None = None,
    since: datetime | None = None,
    after: str | None = None,
) -> list[Record]:
    """Return runs, newest first. A run that no process works on is `queued`, which `status` may be too."""
    query = select(Run.__table__, RUNS.is_free().label("queued"))
    query = query.order_by(Run.created_at.desc(), Run.id.desc()).limit(limit)
    if task is not None:
        query = query.where(Run.task == task)
    if status is not None:
        query = query.where(RUNS.is_free() if status == QUEUED else Run.status == status)
    if since is not None:
        query = query.where(Run.created_at >= since)
    if after is not None:
        query = query.where(_before(Run.created_at, Run.id, after))
    return read_rows(engine, query)


def list_audit(
    engine: Engine,
    filters: Mapping[str, str | None],
    *,
    since: datetime | None = None,
    after: int | None = None,
    limit: int = 50,
) -> list[Record]:
    """Return actions of operators and settings, newest first; with `since`, only those at or after that time.

    `filters` are `who`, `via`, `action`, `object_id` and `organization_id`. An unknown word matches nothing.
    """
    given = _given(filters)
    if any(given.get(name) not in (None, *words) for name, words in (("via", Via), ("action", Action))):
        return []
    query = select(Audit.__table__).order_by(Audit.id.desc()).limit(limit)
    if since is not None:
        query = query.where(Audit.at >= since)
    if after is not None:
        query = query.where(Audit.id < after)
    return read_rows(engine, query.filter_by(**given))


def run(engine: Engine, run_id: str, *, task: Task | None = None) -> Record | None:
    """Return a run with the number of its `findings` by kind and of its `withheld` deletions.

    A run that no process works on is `queued`. For a resync that is not done, or has skipped organizations whose
    listings failed, `compared` is how many organizations it has compared, and their total (None: unknown); its
    `findings` are those so far, and None instead of none.

    None if the id is unknown, or the run has another task than `task`.
    """
    with read_transaction(engine) as tx:
        row = one_row(tx, select(Run.__table__, RUNS.is_free().label("queued")).where(Run.id == run_id))
        if row is None or task not in (None, row["task"]):
            return None
        counted = select(Drift.finding, func.count()).where(Drift.run_id == run_id).group_by(Drift.finding)
        findings = {str(finding): number for finding, number in tx.execute(counted)}
        held = select(func.count()).where(Drift.run_id == run_id, Drift.action == DriftAction.WITHHELD)
        compared_all = row["status"] == RunStatus.DONE and row["total"] is None
        incomplete = row["task"] == Task.RESYNC and not compared_all
        known = {"findings": (findings or None) if incomplete else findings, "withheld": tx.execute(held).scalar_one()}
        return row | known | {"compared": _compared(tx, row) if incomplete else None}


def _compared(tx: Connection, run_row: Record) -> tuple[int, int | None]:
    """Return how many organizations an incomplete resync has compared, and their total (None: unknown)."""
    if run_row["status"] in (RunStatus.FAILED, RunStatus.DONE):
        return run_row["done"], run_row["total"]
    return compared(tx, run_row["id"])


def drift(engine: Engine, run_id: str, limit: int | None = None) -> Iterator[Record]:
    """Yield the differences that a run found, sorted by kind and id.

    The rows are streamed: the first resync reports the whole mirror as missing.
    """
    query = select(Drift.__table__).where(Drift.run_id == run_id).order_by(Drift.kind, Drift.object_id).limit(limit)
    with read_transaction(engine) as tx:
        for row in tx.execute(query, execution_options={"yield_per": FETCH_SIZE}).mappings():
            yield dict(row)


def labelled(engine: Engine, rows: Sequence[Record]) -> list[Record]:
    """Return rows of drift with a `label` by which people recognize the object; None if the mirror has none."""
    labels: dict[tuple[str, str], str | None] = {}
    with read_transaction(engine) as tx:
        for name, kind in KINDS.items():
            ids = [row["object_id"] for row in rows if row["kind"] == name]
            if ids and kind.label is not None:
                found = tx.execute(select(kind.table.id, kind.label).where(kind.table.id.in_(ids)))
                labels |= {(name, id): label for id, label in found}
    return [{**row, "label": labels.get((row["kind"], row["object_id"]))} for row in rows]


def approval(engine: Engine, run_id: str) -> Record | None:
    """Return the newest run that carries out the deletions a run withheld, unless it failed; None if there is none."""
    approving = select(Run.__table__).where(Run.approves == run_id, Run.status != RunStatus.FAILED)
    with read_transaction(engine) as tx:
        return one_row(tx, approving.order_by(Run.created_at.desc()).limit(1))


def run_as_json(engine: Engine, run_row: Record) -> Iterator[str]:
    """Yield a row of `run` with its `drift` as the parts of one JSON document."""
    yield as_json(run_row).removesuffix("\n}") + ',\n  "drift": ['
    separator = "\n"
    for row in drift(engine, run_row["id"]):
        yield separator + as_json(row)
        separator = ",\n"
    yield "]\n}\n"
