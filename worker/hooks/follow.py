"""Host hooks: each follows `changes` with a cursor of its own, at least once, in order for each object.

A change that a hook does not take waits in `hook_deliveries`, is tried again, and is set aside for an operator after a
number of attempts; later changes of the same object wait behind it, those of others go on. The mirror knows nothing of
hooks, so none can hold it up.
"""

import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Concatenate, ParamSpec

import structlog
from rq.timeouts import JobTimeoutException
from sqlalchemy import Connection, Engine, delete, exists, insert, or_, select, tuple_, update
from sqlalchemy.orm import aliased

from models.bulk import dialect_insert
from models.database import in_transaction, is_transient, read_transaction
from models.tables import Change, Hook, HookDelivery, Mirror, Run, Task
from models.types import db_now, db_now_plus
from worker.decision.payload import clean
from worker.errors import CursorGoneError, stack_of, unexpected
from worker.hooks.targets import Row, Target, message
from worker.mirror.change_feed import newest, require_kept

log = structlog.get_logger()

P = ParamSpec("P")

STEP = 100
"""Changes taken on in one transaction: a crash tells them once more."""
LEASE_SECONDS = 120.0
STEP_SECONDS = 30.0
"""What a slow hook was not told of after so long waits for the next step, so that its lease does not run out."""
ROUND_SECONDS = 20.0
"""A hook that is far behind lets the others go on after so long."""
FIRST_BACKOFF_SECONDS = 5.0
MAX_BACKOFF_SECONDS = 3600.0
MAX_TRACEBACK = 8_000


def behind(engine: Engine, names: Iterable[str]) -> bool:
    """Whether a hook has changes to be told of, or one that is due once more."""
    with read_transaction(engine) as tx:
        known = {row.name: row.cursor for row in tx.execute(select(Hook.name, Hook.cursor).where(Hook.name.in_(names)))}
        last = newest(tx)
        due = exists().where(
            HookDelivery.hook.in_(known), HookDelivery.status == "pending", HookDelivery.due_at <= db_now()
        )
        late = set(names) - known.keys() or any(cursor < last for cursor in known.values())
        return bool(late or tx.execute(select(due)).scalar_one())


def follow(
    engine: Engine, wanted: Mapping[str, Target], attempts: int, stopping: Callable[[], bool] = lambda: False
) -> bool:
    """Tell each hook of what it was not told yet; return False if any has more to be told.

    Args:
        engine: the database.
        wanted: what each hook calls, by its name.
        attempts: after so many a change is set aside.
        stopping: says whether to leave off between two steps.
    """
    done = [_follow_or_log(engine, name, target, attempts, stopping) for name, target in wanted.items()]
    return all(done)


def _follow_or_log(engine: Engine, name: str, target: Target, attempts: int, stopping: Callable[[], bool]) -> bool:
    """As `_follow_one`; a hook that fails for a reason of its own waits until its lease is over."""
    try:
        return _follow_one(engine, name, target, attempts, stopping)
    except JobTimeoutException:
        raise
    except Exception as error:
        if is_transient(error):
            raise  # the database is away, and no hook is to blame
        log.warning("hook_not_followed", hook=name, error=unexpected(error), stack=stack_of(error))
        return True


def _follow_one(engine: Engine, name: str, target: Target, attempts: int, stopping: Callable[[], bool]) -> bool:
    in_transaction(engine, _add, name)
    fence = in_transaction(engine, _lease, name)
    if fence is None:
        return True  # another process has it
    follower = Follower(engine, name, target, attempts, fence)
    ends = time.monotonic() + ROUND_SECONDS
    more = True
    try:
        while more and not stopping() and time.monotonic() < ends:
            more = follower.step()
    except _LeaseLostError:
        log.warning("hook_lease_lost", hook=name)
        return True
    in_transaction(engine, _release, name, fence)
    return not more


class _LeaseLostError(Exception):
    """Another process follows for this hook now."""


def _add(tx: Connection, name: str) -> None:
    """Begin a hook: at the first change of a mirror that is not filled yet, else at what changes from now on."""
    if tx.execute(select(Hook.name).where(Hook.name == name)).one_or_none() is None:
        filled = tx.execute(select(Mirror.backfilled_at)).scalar_one() is not None
        row = dialect_insert(tx, Hook).values(name=name, cursor=newest(tx) if filled else 0)
        tx.execute(row.on_conflict_do_nothing())


def _lease(tx: Connection, name: str) -> int | None:
    free = or_(Hook.leased_until.is_(None), Hook.leased_until < db_now())
    taken = (
        update(Hook)
        .where(Hook.name == name, free)
        .values(fence=Hook.fence + 1, leased_until=db_now_plus(LEASE_SECONDS))
    )
    return tx.execute(taken.returning(Hook.fence)).scalar_one_or_none()


def _release(tx: Connection, name: str, fence: int) -> None:
    tx.execute(update(Hook).where(Hook.name == name, Hook.fence == fence).values(leased_until=None))


class Follower:
    """One process's work for one hook, under a lease.

    Args:
        engine: the database.
        name: the hook's.
        target: what it calls.
        attempts: after so many a change is set aside.
        fence: the number of the lease.
    """

    def __init__(self, engine: Engine, name: str, target: Target, attempts: int, fence: int) -> None:
        self._engine = engine
        self._name = name
        self._target = target
        self._attempts = attempts
        self._fence = fence

    def step(self) -> bool:
        """Tell of what is due once more, then of the next changes; return whether there may be more."""
        again = self._due()
        if again:
            results = self._tell(again)
            self._write(self._note_again, again, results)
        with read_transaction(self._engine) as tx:
            cursor = tx.execute(select(Hook.cursor).where(Hook.name == self._name)).scalar_one()
            try:
                require_kept(tx, cursor)
                fresh = _next_changes(tx, cursor)
            except CursorGoneError as error:
                problem, place = str(error), _new_place(tx)
                self._write(self._jump, place, problem)
                return True
            skipped = _found_by_first_resync(tx, fresh)
            standing = self._standing(tx, fresh)
        if not fresh:
            return bool(again)
        wanted = [row for row in fresh if row["id"] not in skipped]
        free = [row for row in wanted if _object(row) not in standing]
        results = self._tell(free)
        self._write(self._note_fresh, fresh[-1]["id"], wanted, results)
        return True

    def _write(self, step: Callable[Concatenate[Connection, P], None], *args: P.args, **kwargs: P.kwargs) -> None:
        def fenced(tx: Connection) -> None:
            ours = update(Hook).where(Hook.name == self._name, Hook.fence == self._fence)
            kept = tx.execute(ours.values(leased_until=db_now_plus(LEASE_SECONDS)).returning(Hook.name)).one_or_none()
            if kept is None:
                raise _LeaseLostError
            step(tx, *args, **kwargs)

        in_transaction(self._engine, fenced)

    def _due(self) -> list[Row]:
        """Return the changes to be told of once more: of each object the first that waits, if it is due."""
        earlier = aliased(HookDelivery)
        behind_another = exists().where(
            earlier.hook == HookDelivery.hook,
            earlier.kind == HookDelivery.kind,
            earlier.object_id == HookDelivery.object_id,
            earlier.status == "pending",
            earlier.change_id < HookDelivery.change_id,
        )
        query = (
            select(Change.__table__, HookDelivery.attempts)
            .join(HookDelivery, HookDelivery.change_id == Change.id)
            .where(HookDelivery.hook == self._name, HookDelivery.status == "pending")
            .where(HookDelivery.due_at <= db_now(), ~behind_another)
            .order_by(Change.id)
            .limit(STEP)
        )
        with read_transaction(self._engine) as tx:
            return [dict(row) for row in tx.execute(query).mappings()]

    def _standing(self, tx: Connection, rows: Sequence[Row]) -> set[tuple[str, str]]:
        """Return the objects among `rows` of which an earlier change waits."""
        objects = {_object(row) for row in rows}
        if not objects:
            return set()
        pair = tuple_(HookDelivery.kind, HookDelivery.object_id)
        waits = select(HookDelivery.kind, HookDelivery.object_id).where(
            HookDelivery.hook == self._name, HookDelivery.status == "pending", pair.in_(objects)
        )
        return {(kind, id) for kind, id in tx.execute(waits)}

    def _tell(self, rows: Sequence[Row]) -> dict[int, BaseException | None]:
        """Tell of changes, in order for each object, and return how each ended."""
        ends = time.monotonic() + STEP_SECONDS
        if self._target.at_once == 1:
            return self._tell_in_order(rows, ends)
        objects: dict[tuple[str, str], list[Row]] = {}
        for row in rows:
            objects.setdefault(_object(row), []).append(row)
        with ThreadPoolExecutor(self._target.at_once, "hook") as pool:
            told = pool.map(lambda group: self._tell_in_order(group, ends), objects.values())
            return {id: end for results in told for id, end in results.items()}

    def _tell_in_order(self, rows: Sequence[Row], ends: float) -> dict[int, BaseException | None]:
        """Tell of changes one by one, until a time of the monotonic clock; of an object that failed no more."""
        results: dict[int, BaseException | None] = {}
        stuck: set[tuple[str, str]] = set()
        for row in rows:
            if time.monotonic() > ends:
                break
            if _object(row) in stuck:
                continue
            try:
                self._target(message(row))
            except (Exception, SystemExit) as error:  # noqa: BLE001 - the host's code may raise anything; it is listed
                results[row["id"]] = error
                stuck.add(_object(row))
            else:
                results[row["id"]] = None
        return results

    def _note_again(self, tx: Connection, rows: Sequence[Row], results: Mapping[int, BaseException | None]) -> None:
        for row in rows:
            if row["id"] in results:
                self._note_one(tx, row, row["attempts"] + 1, results[row["id"]])

    def _note_one(self, tx: Connection, row: Row, attempts: int, error: BaseException | None) -> None:
        here = (HookDelivery.hook == self._name, HookDelivery.change_id == row["id"])
        if error is None:
            tx.execute(delete(HookDelivery).where(*here))
            self._count(tx, 1)
            # The next of this object need not wait any longer.
            same = (HookDelivery.kind == row["kind"], HookDelivery.object_id == row["object_id"])
            waits = (HookDelivery.hook == self._name, HookDelivery.status == "pending", *same)
            tx.execute(update(HookDelivery).where(*waits).values(due_at=db_now()))
        else:
            tx.execute(update(HookDelivery).where(*here).values(self._failure(attempts, error)))
            log.warning("hook_failed", hook=self._name, change=row["id"], attempts=attempts, error=type(error).__name__)

    def _note_fresh(
        self, tx: Connection, cursor: int, wanted: Sequence[Row], results: Mapping[int, BaseException | None]
    ) -> None:
        taken = {id for id, error in results.items() if error is None}
        waiting = []
        for row in wanted:
            if row["id"] in taken:
                continue
            error = results.get(row["id"])
            failure = self._failure(1, error) if error else {"status": "pending", "attempts": 0, "due_at": db_now()}
            place = {"hook": self._name, "change_id": row["id"], "kind": row["kind"], "object_id": row["object_id"]}
            waiting.append(place | failure)
            if error:
                log.warning("hook_failed", hook=self._name, change=row["id"], attempts=1, error=type(error).__name__)
        for values in waiting:
            tx.execute(insert(HookDelivery).values(values))
        self._count(tx, len(taken))
        tx.execute(update(Hook).where(Hook.name == self._name).values(cursor=cursor))

    def _failure(self, attempts: int, error: BaseException) -> dict[str, Any]:
        wait = min(FIRST_BACKOFF_SECONDS * 2.0 ** min(attempts - 1, 20), MAX_BACKOFF_SECONDS)
        trace = "".join(traceback.format_exception(error))[-MAX_TRACEBACK:]
        values = {"attempts": attempts, "error": _said(error), "traceback": clean(trace), "due_at": db_now_plus(wait)}
        return values | {"status": "failed" if attempts >= self._attempts else "pending"}

    def _count(self, tx: Connection, number: int) -> None:
        if number:
            values = {"delivered": Hook.delivered + number, "delivered_at": db_now()}
            tx.execute(update(Hook).where(Hook.name == self._name).values(values))

    def _jump(self, tx: Connection, place: int, problem: str) -> None:
        log.error("hook_missed_changes", hook=self._name, error=problem, goes_on_after=place)
        tx.execute(update(Hook).where(Hook.name == self._name).values(cursor=place, error=problem))


def _object(row: Row) -> tuple[str, str]:
    return row["kind"], row["object_id"]


def _said(error: BaseException) -> str:
    """Return an error in one line. The host's own errors may fail even at that."""
    try:
        message = f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 - see above
        message = f"{type(error).__name__}, whose message cannot be read"
    return clean(message.splitlines()[0])[:1000]


def _next_changes(tx: Connection, cursor: int) -> list[Row]:
    newer = select(Change.__table__).where(Change.id > cursor).order_by(Change.id).limit(STEP)
    return [dict(row) for row in tx.execute(newer).mappings()]


def _new_place(tx: Connection) -> int:
    """Return where a hook goes on whose place is gone: after what was dropped."""
    return tx.execute(select(Mirror.changes_dropped_to)).scalar_one()


def _found_by_first_resync(tx: Connection, rows: Sequence[Row]) -> set[int]:
    """Return the ids of those of `rows` that the filling of an empty mirror made: nothing had changed there."""
    runs = {row["cause_id"] for row in rows if row["cause"] == "resync"}
    filled_at = select(Mirror.backfilled_at).scalar_subquery()
    while_empty = filled_at.is_(None) | (Run.created_at < filled_at)
    first = select(Run.id).where(Run.id.in_(runs), Run.task == Task.RESYNC, while_empty)
    filling = set(tx.execute(first).scalars()) if runs else set()
    return {row["id"] for row in rows if row["cause"] == "resync" and row["cause_id"] in filling}
