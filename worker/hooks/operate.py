"""What operators do with hooks: see their status, and retry or discard failed deliveries."""

from collections.abc import Iterable

from sqlalchemy import ColumnElement, Connection, Delete, Engine, Update, delete, func, select, update

from models.database import in_transaction, read_transaction
from models.rows import read_rows
from models.tables import Action, Change, DeliveryStatus, Hook, HookDelivery
from models.types import Record, db_now
from worker import audit
from worker.errors import OperatorError, UnknownIdError


def hook_status(engine: Engine, names: Iterable[str] = ()) -> list[Record]:
    """Return the status of every hook that has run or is one of `names`, the configured hooks."""
    group = (HookDelivery.hook, HookDelivery.status)
    of_status = select(*group, func.count()).group_by(*group)
    with read_transaction(engine) as tx:
        counts = {(hook, status): number for hook, status, number in tx.execute(of_status)}
        ahead = select(func.count(Change.id)).where(Change.id > Hook.cursor).scalar_subquery()
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


def require_hook(engine: Engine, hook: str, names: Iterable[str]) -> None:
    """Raise `UnknownIdError` unless a hook has run before or is one of `names`, the configured hooks."""
    with read_transaction(engine) as tx:
        ran = tx.execute(select(Hook.name).where(Hook.name == hook)).one_or_none() is not None
    if not ran and hook not in names:
        raise UnknownIdError(f"there is no hook {hook}; to see all, run: workos-sync hooks list")


def replay(engine: Engine, hook: str, change_id: int | None, actor: audit.Actor, names: Iterable[str] = ()) -> int:
    """Retry all failed deliveries of a hook, or only that of one change; return their number, which may be 0.

    Raises:
        UnknownIdError: the hook has never run and is not one of `names`, the configured hooks.
        OperatorError: the hook has no failed delivery of the change.
    """
    values = {"status": DeliveryStatus.PENDING, "attempts": 0, "due_at": db_now()}
    again = update(HookDelivery).where(*_failed(hook, change_id)).values(values)
    require_hook(engine, hook, names)
    return in_transaction(engine, _decide, again, Action.RETRY_DELIVERIES, hook, change_id, actor)


def dismiss(engine: Engine, hook: str, change_id: int | None, actor: audit.Actor, names: Iterable[str] = ()) -> int:
    """Discard failed deliveries. Arguments, result and errors are those of `replay`.

    Raises:
        ConfigurationError: `actor` gives no reason.
    """
    gone = delete(HookDelivery).where(*_failed(hook, change_id))
    require_hook(engine, hook, names)
    return in_transaction(engine, _decide, gone, Action.DISMISS_DELIVERIES, hook, change_id, actor)


def _decide(
    tx: Connection, step: Update | Delete, action: Action, hook: str, change_id: int | None, actor: audit.Actor
) -> int:
    number = tx.execute(step).rowcount
    if number:
        audit.note(tx, actor, action, kind="hook", object_id=hook, change=change_id, deliveries=number)
    elif change_id is not None:
        raise OperatorError(f"hook {hook} has no failed delivery of change {change_id}")
    return number


def _failed(hook: str, change_id: int | None) -> list[ColumnElement[bool]]:
    one = [] if change_id is None else [HookDelivery.change_id == change_id]
    return [HookDelivery.hook == hook, HookDelivery.status == DeliveryStatus.FAILED, *one]
