"""Provisioning: create, through WorkOS's API, the memberships of people who join by their verified domain.

A create reactivates a membership that was deactivated, and its response can be lost. So the person's memberships are
listed right before each create, and the create is sent only if

- every event older than `lag` + `APPLY_ALLOWANCE` at the time of the listing is applied, because it may be a removal;
- every event up to the join's `complete_from` is applied: the time when the join was first claimed, or when it started
  over;
- at most `SEND_SECONDS` have passed since the listing began.

A join that fails or takes too long starts over with a new `complete_from`. Each attempt is recorded before its call, so
that it is known even if the process is killed. The remaining risks: docs/guarantees.md, Not promised.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from redis.exceptions import RedisError
from sqlalchemy import ColumnElement, Connection, Engine, Update, delete, exists, func, select, update

from models.database import in_transaction, is_transient, read_transaction
from models.tables import Join, JoinSearch, JoinState, MirrorState
from models.types import db_now, db_now_plus, inline_literal
from models.views import auto_join_blocks
from worker.backoff import backoff
from worker.errors import BadRequestError, InvalidApiKeyError, NotFoundError, WorkOSError, reason_of
from worker.kinds.user import User
from worker.mirror.auto_join import add_joins, neither_member_nor_blocked
from worker.provisioning.next_step import (
    INVITATION_PENDING,
    ClaimedJoin,
    Close,
    Create,
    NextStep,
    Undo,
    next_step,
    step_by_membership,
)
from worker.queue.doorbell import Doorbell
from worker.workos_api.client import WorkOSClient

log = structlog.get_logger()

CONCURRENT_JOINS = 8
JOINS_PER_ROUND = 200
USERS_PER_STEP = 200
"""Users of a domain that are searched in one transaction."""
CLAIM_SECONDS = 60.0
"""A join claimed more than this many seconds ago, and still open, belongs to a dead worker."""
APPLY_ALLOWANCE = timedelta(seconds=5)
"""Time allowed for reading and applying the newest events that WorkOS shows."""
SEND_SECONDS = 5.0
"""Maximum time from the start of the listing to the create."""
RETRY_SECONDS = 2.0
MAX_BACKOFF_SECONDS = 600.0
MAX_ATTEMPTS = 8
"""After this many attempts, a rejection by WorkOS fails the join, and an operator decides."""
OPEN = (JoinState.PENDING, JoinState.UNDO)


def waiting(engine: Engine) -> bool:
    """Return whether a join is due, or users of a domain must still be searched."""
    with read_transaction(engine) as tx:
        due = exists().where(*_due()) | exists().where(*_no_longer_invited())
        return bool(tx.execute(select(due | exists(select(JoinSearch.domain)))).scalar_one())


def provision(
    engine: Engine,
    workos: WorkOSClient,
    lag: timedelta,
    bell: Doorbell,
    read_events: Callable[[], object],
    update_complete_to: Callable[[], object],
    stopping: Callable[[], bool] = lambda: False,
) -> int:
    """Work once on the joins that are due; return how many were closed.

    Args:
        engine: the database.
        workos: the WorkOS API.
        lag: how long WorkOS may withhold its newest events.
        bell: rung after events were read.
        read_events: reads the events API into the inbox; starts a resync if events are missing there.
        update_complete_to: records the time up to which every event is applied.
        stopping: returns whether to stop.

    Raises:
        InvalidApiKeyError: WorkOS rejects the API key.
        WorkOSError: WorkOS cannot be reached.
    """
    while not stopping() and in_transaction(engine, _search_domain):
        pass
    update_complete_to()
    in_transaction(engine, _reopen_no_longer_invited)
    joins = in_transaction(engine, _claim_due)
    if not joins or stopping():
        return 0
    provisioner = Provisioner(engine, workos, lag)
    provisioner.set_complete_from([join for join in joins if join.complete_from is None])
    with ThreadPoolExecutor(CONCURRENT_JOINS, "provision") as pool:
        closed = sum(pool.map(lambda join: not stopping() and provisioner.work(join), joins))
    if provisioner.awaits_events():
        # The next catch-up may be minutes away.
        read_events()
        in_transaction(engine, _make_due)
        bell.ring()
    return closed


def _due() -> tuple[ColumnElement[bool], ...]:
    return Join.state.in_([inline_literal(state) for state in OPEN]), Join.due_at <= db_now()


def _no_longer_invited() -> tuple[ColumnElement[bool], ...]:
    """Return the conditions for joins that were dropped because of an invitation that has expired since."""
    block = auto_join_blocks.c
    blocked = exists().where(block.organization_id == Join.organization_id, block.user_id == Join.user_id)
    return Join.state == inline_literal(JoinState.DROPPED), Join.reason == INVITATION_PENDING, ~blocked


def _reopen_no_longer_invited(tx: Connection) -> None:
    values = {"state": JoinState.PENDING, "due_at": db_now(), "reason": None, "complete_from": None, "settled_at": None}
    tx.execute(update(Join).where(*_no_longer_invited()).values(values))


def _search_domain(tx: Connection) -> bool:
    """Add joins for the next users of a domain that has begun to auto-join; return False if no domain is left."""
    search = tx.execute(select(JoinSearch.__table__).limit(1).with_for_update(skip_locked=True)).one_or_none()
    if search is None:
        return False
    users = select(User.id).where(User.email_domain == search.domain, User.id > search.after).order_by(User.id)
    ids = list(tx.execute(users.limit(USERS_PER_STEP)).scalars())
    this_search = (JoinSearch.organization_id == search.organization_id, JoinSearch.domain == search.domain)
    if not ids:
        tx.execute(delete(JoinSearch).where(*this_search))
        return True
    # Members and blocked people need no join.
    which = User.id.in_(ids) & neither_member_nor_blocked(search.organization_id)
    if search.created_after is not None:
        which &= User.created_at >= search.created_after
    add_joins(tx, which, (search.cause, search.cause_id))
    tx.execute(update(JoinSearch).where(*this_search).values(after=ids[-1]))
    return True


def _claim_due(tx: Connection) -> list[ClaimedJoin]:
    """Claim the joins that are due, so that no other worker does.

    A claim is not a lease: one worker claims hundreds of joins and needs seconds for each, and `due_at` is also the
    time of the next retry. So a claim expires by itself, and each write checks its number.
    """
    columns = (Join.__table__.c[name] for name in ClaimedJoin._fields)
    due = select(*columns).where(*_due()).order_by(Join.due_at).limit(JOINS_PER_ROUND)
    joins = [ClaimedJoin(*join) for join in tx.execute(due.with_for_update(skip_locked=True))]
    claimed = [join._replace(claim=join.claim + 1) for join in joins]
    for join in claimed:
        tx.execute(update(Join).where(*join.row).values(due_at=db_now_plus(CLAIM_SECONDS), claim=join.claim))
    return claimed


def _make_due(tx: Connection) -> None:
    """Make joins due whose required events are in the inbox by now."""
    soon = (Join.due_at > db_now(), Join.due_at <= db_now_plus(RETRY_SECONDS))
    received = Join.complete_from <= select(MirrorState.inbox_to).scalar_subquery()
    tx.execute(update(Join).where(Join.state == JoinState.PENDING, *soon, received).values(due_at=db_now()))


@dataclass(frozen=True, slots=True)
class Provisioner:
    """Works on claimed joins. `lag`: how long WorkOS may withhold its newest events."""

    engine: Engine
    workos: WorkOSClient
    lag: timedelta

    def set_complete_from(self, joins: Sequence[ClaimedJoin]) -> None:
        """Set the time up to which events must be applied before a create, for joins that are new or start over.

        WorkOS's time is in whole seconds; `complete_from` is the end of that second.
        """
        if joins:
            complete_from = self.workos.now() + timedelta(seconds=1)
            for join in joins:
                # Not if another worker has claimed the join since: its create may still be in flight.
                self._write(join, {"complete_from": complete_from})

    def awaits_events(self) -> bool:
        """Return whether a join waits for events that the events API shows by now and that are not in the inbox."""
        inbox_to = select(MirrorState.inbox_to).scalar_subquery()
        awaited = select(func.min(Join.complete_from)).where(
            Join.state == JoinState.PENDING, inbox_to.is_(None) | (Join.complete_from > inbox_to)
        )
        with read_transaction(self.engine) as tx:
            oldest = tx.execute(awaited).scalar_one()
        return oldest is not None and self.workos.now() - self.lag >= oldest

    def work(self, join: ClaimedJoin) -> bool:
        """Work on a join; return whether it is closed."""
        try:
            if join.state == JoinState.UNDO:
                return self._undo(join)
            with read_transaction(self.engine) as tx:
                step = next_step(tx, join)
            if isinstance(step, Create):
                step = self._create_if_allowed(join, step)
            return self._carry_out(join, step)
        except (InvalidApiKeyError, RedisError):
            raise
        except Exception as error:
            if is_transient(error):
                raise  # the database is unavailable; the join is not the cause
            return self._record_failure(join, error)

    def _create_if_allowed(self, join: ClaimedJoin, wanted: Create) -> NextStep:
        """List the person's memberships and create one if nothing prevents it; return what to do next."""
        deadline = time.monotonic() + SEND_SECONDS
        listing = self.workos.memberships_of(join.organization_id, join.user_id)
        for found in listing.items:
            if (other := step_by_membership(join, found, wanted.unblocked)) is not None:
                return other
        step = in_transaction(self.engine, self._record_attempt, join, listing.read_at)
        if not isinstance(step, Create):
            return step
        created = self.workos.create_membership(join.organization_id, join.user_id, step.role, deadline)
        attempted = join._replace(attempted_at=listing.read_at)
        # A created membership is active, whatever status the answer has.
        return step_by_membership(attempted, created | {"status": "active"}, step.unblocked)

    def _record_attempt(self, tx: Connection, join: ClaimedJoin, listed_at: datetime) -> NextStep:
        """Decide again after the listing; record the attempt if a membership is to be created."""
        step = next_step(tx, join)
        if not isinstance(step, Create):
            return step
        complete_from = listed_at - self.lag
        fresh = MirrorState.complete_to >= complete_from - APPLY_ALLOWANCE
        if tx.execute(select(MirrorState.id).where(fresh)).one_or_none() is None:
            # Wait for these events, which the events API shows by now.
            tx.execute(_update_claimed(join).values(complete_from=complete_from))
            return None
        # Before the call: whatever its result, the next attempt starts over.
        attempt = {"attempted_at": listed_at, "complete_from": None, "due_at": db_now_plus(CLAIM_SECONDS)}
        still_claimed = tx.execute(_update_claimed(join).values(**attempt, attempts=Join.attempts + 1)).rowcount > 0
        return step if still_claimed else None

    def _carry_out(self, join: ClaimedJoin, step: NextStep) -> bool:
        """Carry out a step other than `Create`; return whether the join is closed."""
        match step:
            case Close():
                return self._close(join, step)
            case Undo(membership_id):
                undone = self._write(join, {"state": JoinState.UNDO, "membership_id": membership_id})
                return undone and self._undo(join._replace(membership_id=membership_id))
        self._write(join, {"due_at": db_now_plus(RETRY_SECONDS)})
        return False

    def _undo(self, join: ClaimedJoin) -> bool:
        if join.membership_id is None:
            raise WorkOSError("the membership to deactivate is not known")
        try:
            self.workos.deactivate_membership(join.membership_id)
        except NotFoundError:
            log.info("undo_not_needed", membership_id=join.membership_id)  # it no longer exists
        log.error("join_undone", organization_id=join.organization_id, user_id=join.user_id)
        reason = "inactive in WorkOS when the create activated it; inactive again"
        return self._close(join, Close(JoinState.UNDONE, reason))

    def _record_failure(self, join: ClaimedJoin, error: Exception) -> bool:
        """Record a failed attempt, and retry it unless it can never succeed; return whether the join is closed."""
        with read_transaction(self.engine) as tx:
            now = tx.execute(select(Join.attempts, Join.state).where(*join.row)).one_or_none()
        if now is None or now.state not in OPEN:
            return False
        if now.state != JoinState.UNDO:
            if isinstance(error, NotFoundError):
                reason = "WorkOS does not know the person, the workspace or the role"
                return self._close(join, Close(JoinState.DROPPED, reason))
            if isinstance(error, BadRequestError) and now.attempts >= MAX_ATTEMPTS:
                return self._close(join, Close(JoinState.FAILED, str(error)))
        wait = backoff(now.attempts + 1, RETRY_SECONDS, MAX_BACKOFF_SECONDS)
        problem = reason_of(error)
        log.warning("join_attempt_failed", error=problem, again_in_seconds=wait)
        # A retry needs newer data than this attempt had.
        self._write(join, {"error": problem, "due_at": db_now_plus(wait), "complete_from": None})
        return False

    def _close(self, join: ClaimedJoin, close: Close) -> bool:
        """Close a join; return False if an operator or another worker has changed it."""
        values = {"state": close.state, "reason": close.reason, "settled_at": db_now()}
        if close.membership_id is not None:
            values["membership_id"] = close.membership_id
        if close.state is JoinState.JOINED:
            values["error"] = None
        return self._write(join, values)

    def _write(self, join: ClaimedJoin, values: Mapping[str, object]) -> bool:
        """Update a join that is open and still claimed; False if an operator or another worker has changed it."""
        step = _update_claimed(join).values(values)
        return in_transaction(self.engine, lambda tx: tx.execute(step).rowcount > 0)


def _update_claimed(join: ClaimedJoin) -> Update:
    return update(Join).where(*join.row, Join.state.in_(OPEN), Join.claim == join.claim)
