"""Hooks: each follows `changes` with its own cursor and sees every change at least once, in order for each object.

A change that a hook did not accept waits in `hook_deliveries` and is retried. After a number of attempts it is failed,
and an operator decides. Later changes of the same object wait behind a pending one; those of other objects go on. The
mirror does not know about hooks, so no hook can hold it up.
"""

import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Concatenate, ParamSpec

import structlog
from rq.timeouts import JobTimeoutException
from sqlalchemy import ColumnElement, Connection, Engine, delete, exists, insert, select, tuple_, update
from sqlalchemy.orm import aliased

from models.bulk import dialect_insert
from models.database import in_transaction, is_transient, read_transaction
from models.tables import Cause, Change, DeliveryStatus, Hook, HookDelivery, Mirror, Run, Task
from models.types import db_now, db_now_plus
from worker.backoff import backoff
from worker.decision.payload import clean
from worker.errors import CursorGoneError, LeaseLostError, stack_of, unexpected
from worker.hooks.targets import ChangeToSend, Target, message
from worker.leases import Lease, LeasedTable
from worker.mirror.change_feed import newest, require_kept

log = structlog.get_logger()

P = ParamSpec("P")

HOOKS = LeasedTable(Hook.name, Hook.leased_until, Hook.fence)
PENDING: ColumnElement[bool] = HookDelivery.status == DeliveryStatus.PENDING
CHANGES_PER_STEP = 100
"""A process that is killed sends the changes of its last step again."""
STEP_SECONDS = 30.0
"""Changes not sent by then wait for the next step, so that what was sent is recorded and the job ends in time."""
ROUND_SECONDS = 20.0
"""A hook that is far behind lets the next hook start after this long."""
FIRST_BACKOFF_SECONDS = 5.0
MAX_BACKOFF_SECONDS = 3600.0
MAX_TRACEBACK = 8_000

Results = Mapping[int, BaseException | None]
"""How sending each change ended, by its id: None if it was accepted. A change that was not sent is missing."""


def behind(engine: Engine, names: Iterable[str]) -> bool:
    """Return whether any of these hooks has changes to receive, or a retry that is due."""
    with read_transaction(engine) as tx:
        known = {row.name: row.cursor for row in tx.execute(select(Hook.name, Hook.cursor).where(Hook.name.in_(names)))}
        last = newest(tx)
        due = exists().where(HookDelivery.hook.in_(known), PENDING, HookDelivery.due_at <= db_now())
        late = set(names) - known.keys() or any(cursor < last for cursor in known.values())
        return bool(late or tx.execute(select(due)).scalar_one())


def follow(
    engine: Engine, wanted: Mapping[str, Target], attempts: int, stopping: Callable[[], bool] = lambda: False
) -> bool:
    """Send each hook the changes it has not received; return False if any hook has more to receive.

    Args:
        engine: the database.
        wanted: the target of each hook, by the hook's name.
        attempts: a change is failed after this many.
        stopping: returns whether to stop between two steps.

    Raises:
        sqlalchemy.exc.DBAPIError: the database is unavailable.
        rq.timeouts.JobTimeoutException: the job took too long.
    """
    done = [_follow_one(engine, name, target, attempts, stopping) for name, target in wanted.items()]
    return all(done)


def _follow_one(engine: Engine, name: str, target: Target, attempts: int, stopping: Callable[[], bool]) -> bool:
    in_transaction(engine, _add, name)
    with HOOKS.lease(engine, name) as lease:
        if lease is None:
            return True  # another process follows for this hook
        try:
            return _follow_leased(Follower(engine, lease, target, attempts), lease, stopping)
        except LeaseLostError:
            log.warning("hook_lease_lost", hook=name)
        except JobTimeoutException:
            raise
        except Exception as error:
            if is_transient(error):
                raise  # the database is unavailable, which is not the hook's fault
            log.warning("hook_not_followed", hook=name, error=unexpected(error), stack=stack_of(error))
            lease.leave_to_expire()  # the next attempt would fail too: it may wait
        return True


def _follow_leased(follower: "Follower", lease: Lease, stopping: Callable[[], bool]) -> bool:
    ends = time.monotonic() + ROUND_SECONDS
    while not stopping() and not lease.lost.is_set() and time.monotonic() < ends:
        if not follower.step():
            return True
    return False


def _add(tx: Connection, name: str) -> None:
    """Add a hook: it starts at the first change while the mirror is being filled, otherwise at the next one."""
    if tx.execute(select(Hook.name).where(Hook.name == name)).one_or_none() is None:
        filled = tx.execute(select(Mirror.backfilled_at)).scalar_one() is not None
        row = dialect_insert(tx, Hook).values(name=name, cursor=newest(tx) if filled else 0)
        tx.execute(row.on_conflict_do_nothing())


class Follower:
    """One process's work for one hook, under a lease.

    Args:
        engine: the database.
        lease: the lease of the hook.
        target: where changes are sent.
        attempts: a change is failed after this many.
    """

    def __init__(self, engine: Engine, lease: Lease, target: Target, attempts: int) -> None:
        self._engine = engine
        self._lease = lease
        self._name = lease.key
        self._target = target
        self._attempts = attempts

    def step(self) -> bool:
        """Send the retries that are due, then the next changes; return whether there may be more."""
        retries = self._due_retries()
        if retries:
            results = self._send(retries)
            self._write(self._record_retries, retries, results)
        with read_transaction(self._engine) as tx:
            cursor = tx.execute(select(Hook.cursor).where(Hook.name == self._name)).scalar_one()
            try:
                require_kept(tx, cursor)
            except CursorGoneError as error:
                problem, pruned_to = str(error), tx.execute(select(Mirror.changes_dropped_to)).scalar_one()
                self._write(self._skip_to, pruned_to, problem)
                return True
            changes = _next_changes(tx, cursor)
            backfilled = _made_by_first_resync(tx, changes)
            blocked = self._objects_with_pending(tx, changes)
        if not changes:
            return bool(retries)
        wanted = [change for change in changes if change.id not in backfilled]
        results = self._send([change for change in wanted if _object(change) not in blocked])
        self._write(self._record_new, changes[-1].id, wanted, results)
        return True

    def _write(self, step: Callable[Concatenate[Connection, P], None], *args: P.args, **kwargs: P.kwargs) -> None:
        def fenced(tx: Connection) -> None:
            self._lease.check(tx)
            step(tx, *args, **kwargs)

        in_transaction(self._engine, fenced)

    def _due_retries(self) -> list[ChangeToSend]:
        """Return, for each object, its first pending change if that is due."""
        earlier = aliased(HookDelivery)
        behind_another = exists().where(
            earlier.hook == HookDelivery.hook,
            earlier.kind == HookDelivery.kind,
            earlier.object_id == HookDelivery.object_id,
            earlier.status == DeliveryStatus.PENDING,
            earlier.change_id < HookDelivery.change_id,
        )
        query = (
            select(Change.__table__, HookDelivery.attempts)
            .join(HookDelivery, HookDelivery.change_id == Change.id)
            .where(HookDelivery.hook == self._name, PENDING, HookDelivery.due_at <= db_now(), ~behind_another)
            .order_by(Change.id)
            .limit(CHANGES_PER_STEP)
        )
        with read_transaction(self._engine) as tx:
            return [ChangeToSend(**row) for row in tx.execute(query).mappings()]

    def _objects_with_pending(self, tx: Connection, changes: Sequence[ChangeToSend]) -> set[tuple[str, str]]:
        """Return those objects of `changes` that have an earlier pending change."""
        objects = {_object(change) for change in changes}
        if not objects:
            return set()
        pair = tuple_(HookDelivery.kind, HookDelivery.object_id)
        pending = select(HookDelivery.kind, HookDelivery.object_id).where(
            HookDelivery.hook == self._name, PENDING, pair.in_(objects)
        )
        return {(kind, id) for kind, id in tx.execute(pending)}

    def _send(self, changes: Sequence[ChangeToSend]) -> Results:
        """Send changes, in order for each object."""
        ends = time.monotonic() + STEP_SECONDS
        if self._target.at_once == 1:
            return self._send_in_order(changes, ends)
        objects: dict[tuple[str, str], list[ChangeToSend]] = {}
        for change in changes:
            objects.setdefault(_object(change), []).append(change)
        with ThreadPoolExecutor(self._target.at_once, "hook") as pool:
            groups = pool.map(lambda group: self._send_in_order(group, ends), objects.values())
            return {id: error for results in groups for id, error in results.items()}

    def _send_in_order(self, changes: Sequence[ChangeToSend], ends: float) -> Results:
        """Send changes one by one until `ends`, in seconds of the monotonic clock; skip an object that has failed."""
        results: dict[int, BaseException | None] = {}
        failed: set[tuple[str, str]] = set()
        for change in changes:
            if time.monotonic() > ends:
                break
            if _object(change) in failed:
                continue
            try:
                self._target(message(change))
            except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a target raises is recorded
                results[change.id] = error
                failed.add(_object(change))
            else:
                results[change.id] = None
        return results

    def _record_retries(self, tx: Connection, changes: Sequence[ChangeToSend], results: Results) -> None:
        for change in changes:
            if change.id not in results:
                continue
            delivery = (HookDelivery.hook == self._name, HookDelivery.change_id == change.id)
            if (error := results[change.id]) is None:
                tx.execute(delete(HookDelivery).where(*delivery))
                self._release_next(tx, change)
            else:
                failure = self._failure(change, change.attempts + 1, error)
                tx.execute(update(HookDelivery).where(*delivery).values(failure))
        self._count_delivered(tx, sum(error is None for error in results.values()))

    def _release_next(self, tx: Connection, change: ChangeToSend) -> None:
        """Make the pending changes of the same object due at once."""
        same = (HookDelivery.kind == change.kind, HookDelivery.object_id == change.object_id)
        pending = update(HookDelivery).where(HookDelivery.hook == self._name, PENDING, *same)
        tx.execute(pending.values(due_at=db_now()))

    def _record_new(self, tx: Connection, cursor: int, wanted: Sequence[ChangeToSend], results: Results) -> None:
        accepted = {id for id, error in results.items() if error is None}
        for change in wanted:
            if change.id in accepted:
                continue
            key = {"hook": self._name, "change_id": change.id, "kind": change.kind, "object_id": change.object_id}
            error = results.get(change.id)
            tx.execute(insert(HookDelivery).values(key | (self._failure(change, 1, error) if error else {})))
        self._count_delivered(tx, len(accepted))
        tx.execute(update(Hook).where(Hook.name == self._name).values(cursor=cursor))

    def _failure(self, change: ChangeToSend, attempts: int, error: BaseException) -> dict[str, object]:
        """Log a failed attempt and return the columns that record it."""
        log.warning("hook_failed", hook=self._name, change=change.id, attempts=attempts, error=type(error).__name__)
        return {
            "status": DeliveryStatus.FAILED if attempts >= self._attempts else DeliveryStatus.PENDING,
            "attempts": attempts,
            "error": _describe(error),
            "traceback": clean("".join(traceback.format_exception(error))[-MAX_TRACEBACK:]),
            "due_at": db_now_plus(backoff(attempts, FIRST_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS)),
        }

    def _count_delivered(self, tx: Connection, number: int) -> None:
        if number:
            values = {"delivered": Hook.delivered + number, "delivered_at": db_now()}
            tx.execute(update(Hook).where(Hook.name == self._name).values(values))

    def _skip_to(self, tx: Connection, change_id: int, problem: str) -> None:
        log.error("hook_missed_changes", hook=self._name, error=problem, goes_on_after=change_id)
        tx.execute(update(Hook).where(Hook.name == self._name).values(cursor=change_id, error=problem))


def _object(change: ChangeToSend) -> tuple[str, str]:
    return change.kind, change.object_id


def _describe(error: BaseException) -> str:
    """Return an error in one line; an error whose message cannot be made is described by its class."""
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 - see above
        text = f"{type(error).__name__}, whose message cannot be read"
    return clean(text.splitlines()[0])[:1000]


def _next_changes(tx: Connection, cursor: int) -> list[ChangeToSend]:
    newer = select(Change.__table__).where(Change.id > cursor).order_by(Change.id).limit(CHANGES_PER_STEP)
    return [ChangeToSend(**row) for row in tx.execute(newer).mappings()]


def _made_by_first_resync(tx: Connection, changes: Sequence[ChangeToSend]) -> set[int]:
    """Return the ids of changes that filled the empty mirror: nothing had changed at WorkOS."""
    by_run = {change.id: change.cause_id for change in changes if change.cause == Cause.RESYNC}
    if not by_run:
        return set()
    filled_at = select(Mirror.backfilled_at).scalar_subquery()
    while_empty = filled_at.is_(None) | (Run.created_at < filled_at)
    first = select(Run.id).where(Run.id.in_(set(by_run.values())), Run.task == Task.RESYNC, while_empty)
    filling = set(tx.execute(first).scalars())
    return {id for id, run_id in by_run.items() if run_id in filling}
