"""Operators' view of hooks: their status, and retrying or dismissing failed deliveries."""

from collections.abc import Iterable
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, Delete, Engine, Update, delete, func, or_, select, update

from models.database import in_transaction, read_transaction
from models.rows import all_rows, read_rows
from models.tables import Action, Change, DeliveryStatus, Hook, HookDelivery
from models.types import Record, db_now
from worker import audit
from worker.errors import OperatorError, UnknownIdError
from worker.mirror.affected import NO_WORKSPACE, affected_workspaces

MAX_COUNTED = 10_000


def list_hooks(engine: Engine, names: Iterable[str] = ()) -> list[Record]:
    """Return what `hook_status` returns now."""
    with read_transaction(engine) as tx:
        return hook_status(tx, names)


def hook_status(tx: Connection, names: Iterable[str] = ()) -> list[Record]:
    """Return the status of every hook that has run or is one of `names`, the configured hooks.

    `behind` is the number of changes after its cursor, up to `MAX_COUNTED`.
    """
    group = (HookDelivery.hook, HookDelivery.status)
    of_status = select(*group, func.count()).group_by(*group)
    counts = {(hook, status): number for hook, status, number in tx.execute(of_status)}
    following = select(Change.id).where(Change.id > Hook.cursor).limit(MAX_COUNTED).correlate(Hook).subquery()
    ahead = select(func.count()).select_from(following).scalar_subquery()
    columns = (Hook.cursor, ahead.label("behind"), Hook.delivered, Hook.delivered_at, Hook.error)
    rows = {row["name"]: row for row in tx.execute(select(Hook.name, *columns)).mappings()}
    never_ran = {"cursor": None, "behind": None, "delivered": 0, "delivered_at": None, "error": None}
    return [
        {
            "hook": name,
            "configured": name in names,
            "waiting": counts.get((name, DeliveryStatus.PENDING), 0),
            "failed": counts.get((name, DeliveryStatus.FAILED), 0),
            **{column: rows.get(name, never_ran)[column] for column in never_ran},
        }
        for name in sorted(rows.keys() | set(names))
    ]


def deliveries(
    engine: Engine, *, hook: str | None = None, status: DeliveryStatus | None = None, limit: int = 50
) -> list[Record]:
    """Return the undelivered changes of one hook or all, oldest first, with errors and tracebacks."""
    query = select(HookDelivery.__table__).order_by(HookDelivery.change_id, HookDelivery.hook).limit(limit)
    for column, value in ((HookDelivery.hook, hook), (HookDelivery.status, status)):
        if value is not None:
            query = query.where(column == value)
    return read_rows(engine, query)


def failures(engine: Engine, limit: int | None = None) -> list[Record]:
    """Return failed deliveries grouped by hook and fingerprint, the largest group first.

    A group has the number of its `deliveries`, the times of the `first` and the `last` failure, an `example`: the id of
    a change, with its `error` and `traceback`, and the workspaces that it is about, as `affected_workspaces`. The
    fingerprint and the times are None for deliveries that failed before release 2.0.
    """
    number = func.count()
    group = (HookDelivery.hook, HookDelivery.fingerprint)
    times = (func.min(HookDelivery.attempted_at).label("first"), func.max(HookDelivery.attempted_at).label("last"))
    example = func.min(HookDelivery.change_id).label("example")
    failed = HookDelivery.status == DeliveryStatus.FAILED
    query = select(*group, number.label("deliveries"), *times, example).where(failed).group_by(*group)
    of_changes = select(HookDelivery).join(Change, Change.id == HookDelivery.change_id).where(failed)
    with read_transaction(engine) as tx:
        groups = all_rows(tx, query.order_by(number.desc(), *group).limit(limit))
        affected = affected_workspaces(tx, of_changes, group, Change.organization_id, "deliveries")
        for row in groups:
            of_example = (HookDelivery.hook == row["hook"], HookDelivery.change_id == row["example"])
            row.update(all_rows(tx, select(HookDelivery.error, HookDelivery.traceback).where(*of_example))[0])
            row.update(affected.get((row["hook"], row["fingerprint"]), NO_WORKSPACE))
    return groups


def require_hook(engine: Engine, hook: str, names: Iterable[str]) -> None:
    """Raise `UnknownIdError` unless a hook has run before or is one of `names`, the configured hooks."""
    with read_transaction(engine) as tx:
        ran = tx.execute(select(Hook.name).where(Hook.name == hook)).one_or_none() is not None
    if not ran and hook not in names:
        raise UnknownIdError(f"there is no hook {hook}; to see all, run: workos-sync hooks list")


def replay(
    engine: Engine,
    hook: str,
    change_id: int | None,
    actor: audit.Actor,
    names: Iterable[str] = (),
    fingerprint: str | None = None,
) -> int:
    """Retry all failed deliveries of a hook, only that of one change, or only those with one error.

    `fingerprint` is that of the error; empty for deliveries without one. Returns the number of deliveries, which may
    be 0.

    Raises:
        UnknownIdError: the hook has never run and is not one of `names`, the configured hooks.
        OperatorError: the hook has no failed delivery of the change.
    """
    values = {"status": DeliveryStatus.PENDING, "attempts": 0, "due_at": db_now()}
    again = update(HookDelivery).where(*_failed(hook, change_id, fingerprint)).values(values)
    require_hook(engine, hook, names)
    return in_transaction(engine, _decide, again, Action.RETRY_DELIVERIES, hook, change_id, fingerprint, actor)


def dismiss(
    engine: Engine,
    hook: str,
    change_id: int | None,
    actor: audit.Actor,
    names: Iterable[str] = (),
    fingerprint: str | None = None,
    failed_by: datetime | None = None,
) -> int:
    """Dismiss failed deliveries; with `failed_by`, an aware time, only those that had failed by then.

    The other arguments, the result and the errors are those of `replay`.

    Raises:
        ConfigurationError: `actor` gives no reason.
    """
    gone = delete(HookDelivery).where(*_failed(hook, change_id, fingerprint))
    if failed_by is not None:
        gone = gone.where(or_(HookDelivery.attempted_at.is_(None), HookDelivery.attempted_at <= failed_by))
    require_hook(engine, hook, names)
    return in_transaction(engine, _decide, gone, Action.DISMISS_DELIVERIES, hook, change_id, fingerprint, actor)


def _decide(
    tx: Connection,
    step: Update | Delete,
    action: Action,
    hook: str,
    change_id: int | None,
    fingerprint: str | None,
    actor: audit.Actor,
) -> int:
    number = tx.execute(step).rowcount
    if number:
        about = {"kind": "hook", "object_id": hook}
        audit.note(tx, actor, action, **about, change=change_id, fingerprint=fingerprint, deliveries=number)
    elif change_id is not None:
        raise OperatorError(f"hook {hook} has no failed delivery of change {change_id}")
    return number


def _failed(hook: str, change_id: int | None, fingerprint: str | None) -> list[ColumnElement[bool]]:
    found = [HookDelivery.hook == hook, HookDelivery.status == DeliveryStatus.FAILED]
    if change_id is not None:
        found.append(HookDelivery.change_id == change_id)
    if fingerprint is not None:
        found.append(HookDelivery.fingerprint.is_not_distinct_from(fingerprint or None))
    return found
