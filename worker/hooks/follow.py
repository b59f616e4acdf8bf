"""Hooks: each follows `changes` with its own cursor and gets every change at least once, in order for each object.

A change that a hook did not accept is stored in `hook_deliveries` and retried. Later changes of the same object wait
for it; changes of other objects do not. After `HOOK_ATTEMPTS` attempts the delivery is failed, and an operator decides.
"""

import hashlib
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import structlog
from sqlalchemy import ColumnElement, Connection, Engine, delete, exists, insert, select, tuple_, update
from sqlalchemy.orm import aliased

from models.bulk import dialect_insert
from models.database import in_transaction, is_transient, read_transaction
from models.tables import Cause, Change, DeliveryStatus, Event, Hook, HookDelivery, MirrorState, Run, Task
from models.types import JsonObject, db_now, db_now_plus
from worker import traces
from worker.backoff import backoff
from worker.decision.payload import clean
from worker.error_handling import describe
from worker.errors import CursorGoneError, HookError, LeaseLostError
from worker.hooks.targets import ChangeToSend, message
from worker.leases import Lease, LeasedTable
from worker.mirror.change_feed import newest, require_kept

log = structlog.get_logger()

HOOKS = LeasedTable(Hook.name, Hook.leased_until, Hook.fence)
SENT = [column for column in Change.__table__.columns if column.name in ChangeToSend._fields]
"""The columns of a change that a hook receives."""
PENDING: ColumnElement[bool] = HookDelivery.status == DeliveryStatus.PENDING
CHANGES_PER_STEP = 100
"""After a crash, the changes of the last step are sent again."""
STEP_SECONDS = 30.0
"""Changes not sent by then wait for the next step, so that accepted ones are recorded in time."""
CONCURRENT_CALLS = 8
"""Upper bound on the concurrent calls of a hook. Each is about another object."""
FIRST_BACKOFF_SECONDS = 5.0
MAX_BACKOFF_SECONDS = 3600.0
MAX_TRACEBACK = 8_000

Target = Callable[[JsonObject], object]
"""Sends a message to a hook; any exception means that the hook did not accept it."""
Results = Mapping[int, BaseException | None]
"""The error of each change that was sent, by its id; None if it was accepted."""


def behind(engine: Engine, names: Iterable[str]) -> bool:
    """Return whether any of these hooks has changes to receive, or a retry that is due."""
    with read_transaction(engine) as tx:
        known = {row.name: row.cursor for row in tx.execute(select(Hook.name, Hook.cursor).where(Hook.name.in_(names)))}
        last = newest(tx)
        due = exists().where(HookDelivery.hook.in_(known), PENDING, HookDelivery.due_at <= db_now())
        late = set(names) - known.keys() or any(cursor < last for cursor in known.values())
        return bool(late or tx.execute(select(due)).scalar_one())


def follow(
    engine: Engine,
    name: str,
    target: Target,
    attempts: int,
    stopping: Callable[[], bool] = lambda: False,
    report: Callable[[BaseException], object] = lambda _: None,
) -> None:
    """Send a hook the changes it has not received, unless another process does so already.

    Args:
        engine: the database.
        name: the hook's name.
        target: where its changes are sent.
        attempts: attempts before a delivery is failed.
        stopping: returns whether to stop; called between two calls of the target.
        report: called with each error of the target that is not a `HookError`. The change is sent again.

    Raises:
        sqlalchemy.exc.DBAPIError: the database is unavailable. After any other error, the hook waits until its lease
            expires.
    """
    in_transaction(engine, _add, name)
    with HOOKS.lease(engine, name) as lease:
        if lease is None:
            return  # another process works for this hook
        try:
            Follower(engine, lease, target, attempts, stopping, report).run()
        except LeaseLostError:
            log.warning("hook_lease_lost", hook=name)
        except Exception as error:
            if not is_transient(error):
                lease.leave_to_expire()  # the next attempt would probably fail too
            raise


def _add(tx: Connection, name: str) -> None:
    """Add a hook if it is new. It starts with the next change; if the mirror is being filled, with the first."""
    if tx.execute(select(Hook.name).where(Hook.name == name)).one_or_none() is None:
        filled = tx.execute(select(MirrorState.backfilled_at)).scalar_one() is not None
        row = dialect_insert(tx, Hook).values(name=name, cursor=newest(tx) if filled else 0)
        tx.execute(row.on_conflict_do_nothing())


@dataclass(frozen=True, slots=True)
class Follower:
    """Sends changes to the hook whose lease it holds. A delivery is failed after `attempts` attempts."""

    engine: Engine
    lease: Lease
    target: Target
    attempts: int
    stopping: Callable[[], bool]
    report: Callable[[BaseException], object]

    @property
    def _name(self) -> str:
        return self.lease.key

    def run(self) -> None:
        """Send changes until there are none, the process is stopping, or the lease is lost."""
        while not self.stopping() and not self.lease.lost.is_set() and self._step():
            pass

    def _step(self) -> bool:
        """Send the retries that are due, then the next changes; return whether there may be more."""
        retries = self._due_retries()
        if retries:
            self.lease.in_transaction(self.engine, self._record_retries, retries, self._send(retries))
        with read_transaction(self.engine) as tx:
            cursor = tx.execute(select(Hook.cursor).where(Hook.name == self._name)).scalar_one()
            try:
                require_kept(tx, cursor)
            except CursorGoneError as error:
                problem, pruned_to = str(error), tx.execute(select(MirrorState.changes_dropped_to)).scalar_one()
                self.lease.in_transaction(self.engine, self._skip_to, pruned_to, problem)
                return True
            newer = select(*SENT).where(Change.id > cursor).order_by(Change.id).limit(CHANGES_PER_STEP)
            changes = [ChangeToSend(**row) for row in tx.execute(newer).mappings()]
            if not changes:
                return bool(retries)
            backfilled = _made_by_first_resync(tx, changes)
            blocked = self._objects_with_pending(tx, changes)
        wanted = [change for change in changes if change.id not in backfilled]
        results = self._send([change for change in wanted if change.object_key not in blocked])
        self.lease.in_transaction(self.engine, self._record_new, changes[-1].id, wanted, results)
        return True

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
            select(*SENT, HookDelivery.attempts)
            .join(HookDelivery, HookDelivery.change_id == Change.id)
            .where(HookDelivery.hook == self._name, PENDING, HookDelivery.due_at <= db_now(), ~behind_another)
            .order_by(Change.id)
            .limit(CHANGES_PER_STEP)
        )
        with read_transaction(self.engine) as tx:
            return [ChangeToSend(**row) for row in tx.execute(query).mappings()]

    def _objects_with_pending(self, tx: Connection, changes: Sequence[ChangeToSend]) -> set[tuple[str, str]]:
        """Return the objects of `changes` that have an earlier pending change."""
        columns = (HookDelivery.kind, HookDelivery.object_id)
        objects = {change.object_key for change in changes}
        pending = select(*columns).where(HookDelivery.hook == self._name, PENDING, tuple_(*columns).in_(objects))
        return {(kind, id) for kind, id in tx.execute(pending)}

    def _send(self, changes: Sequence[ChangeToSend]) -> Results:
        """Send changes, in order for each object."""
        ends = time.monotonic() + STEP_SECONDS
        traceparents = _traceparents(self.engine, changes) if traces.is_on() else {}
        objects: dict[tuple[str, str], list[ChangeToSend]] = {}
        for change in changes:
            objects.setdefault(change.object_key, []).append(change)
        with ThreadPoolExecutor(CONCURRENT_CALLS, "hook") as pool:
            groups = pool.map(lambda group: self._send_in_order(group, ends, traceparents), objects.values())
            return {id: error for results in groups for id, error in results.items()}

    def _send_in_order(
        self, changes: Sequence[ChangeToSend], ends: float, traceparents: Mapping[str, str | None]
    ) -> Results:
        """Send changes one by one until `ends` (monotonic time). After a failure, skip the object's later changes.

        When the process is stopping, the remaining changes are left to the next step of another process.
        """
        results: dict[int, BaseException | None] = {}
        failed: set[tuple[str, str]] = set()
        for change in changes:
            if time.monotonic() > ends or self.stopping():
                break
            if change.object_key in failed:
                continue
            results[change.id] = None
            try:
                traceparent = traceparents.get(change.cause_id)
                with traces.continued("hook", traceparent, hook=self._name, kind=change.kind):
                    self.target(message(change))
            except Exception as error:  # noqa: BLE001 - whatever a target raises is recorded
                if not isinstance(error, HookError):
                    self.report(error)
                results[change.id] = error
                failed.add(change.object_key)
        return results

    def _record_retries(self, tx: Connection, changes: Sequence[ChangeToSend], results: Results) -> None:
        for change in changes:
            if change.id not in results:
                continue
            delivery = (HookDelivery.hook == self._name, HookDelivery.change_id == change.id)
            if (error := results[change.id]) is None:
                tx.execute(delete(HookDelivery).where(*delivery))
                # The object's next change is due now.
                same_object = (HookDelivery.kind == change.kind, HookDelivery.object_id == change.object_id)
                behind_it = update(HookDelivery).where(HookDelivery.hook == self._name, PENDING, *same_object)
                tx.execute(behind_it.values(due_at=db_now()))
            else:
                failure = self._failure(change, change.attempts + 1, error)
                tx.execute(update(HookDelivery).where(*delivery).values(failure))
        self._count_delivered(tx, sum(error is None for error in results.values()))

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
        log.warning("hook_failed", hook=self._name, change=change.id, attempts=attempts, error=describe(error))
        described = _describe(error)
        return {
            "status": DeliveryStatus.FAILED if attempts >= self.attempts else DeliveryStatus.PENDING,
            "attempts": attempts,
            "error": described,
            "traceback": None  # of a refusal, it would say nothing about the receiver
            if isinstance(error, HookError)
            else clean("".join(traceback.format_exception(error))[-MAX_TRACEBACK:]),
            # Without `worker.errors.fingerprint`: these errors name no ids, and a status distinguishes causes.
            "fingerprint": hashlib.sha256(described.encode()).hexdigest()[:8],
            "attempted_at": db_now(),
            "due_at": db_now_plus(backoff(attempts, FIRST_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS)),
        }

    def _count_delivered(self, tx: Connection, number: int) -> None:
        if number:
            values = {"delivered": Hook.delivered + number, "delivered_at": db_now()}
            tx.execute(update(Hook).where(Hook.name == self._name).values(values))

    def _skip_to(self, tx: Connection, change_id: int, problem: str) -> None:
        log.error("hook_missed_changes", hook=self._name, error=problem, continues_after=change_id)
        tx.execute(update(Hook).where(Hook.name == self._name).values(cursor=change_id, error=problem))


def _describe(error: BaseException) -> str:
    """Return an error in one line. If making its message fails, only its class is named."""
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 - see above
        text = f"{type(error).__name__}, whose message cannot be read"
    return clean(text.splitlines()[0])[:1000]


def _traceparents(engine: Engine, changes: Sequence[ChangeToSend]) -> Mapping[str, str | None]:
    """Return the stored traces of the events that caused changes, by event id."""
    ids = {change.cause_id for change in changes if change.cause == Cause.EVENT}
    with read_transaction(engine) as tx:
        found = tx.execute(select(Event.id, Event.traceparent).where(Event.id.in_(ids)))
        return {event.id: event.traceparent for event in found}


def _made_by_first_resync(tx: Connection, changes: Sequence[ChangeToSend]) -> set[int]:
    """Return the ids of changes that filled the empty mirror. They are not sent: nothing had changed in WorkOS."""
    by_run = {change.id: change.cause_id for change in changes if change.cause == Cause.RESYNC}
    if not by_run:
        return set()
    filled_at = select(MirrorState.backfilled_at).scalar_subquery()
    while_empty = filled_at.is_(None) | (Run.created_at < filled_at)
    first = select(Run.id).where(Run.id.in_(set(by_run.values())), Run.task == Task.RESYNC, while_empty)
    filling = set(tx.execute(first).scalars())
    return {id for id, run_id in by_run.items() if run_id in filling}
