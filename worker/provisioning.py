"""Provisioning: create, through WorkOS's API, the memberships of people who join by their verified domain.

WorkOS decides who is a member. Its answers can be lost, and a create activates a membership that was deactivated. So
the person's memberships are listed right before each create, and the create is sent only if

- every event is applied that is older than the listing by the lag and `FRESH`: one of them may be a removal;
- every event is applied up to `complete_from`, a time after the join was added and after the last call that failed;
- no more than `SEND_SECONDS` have passed since before the listing.

A join that fails or takes too long starts over with a new `complete_from`. Each attempt is recorded before its call, so
that a process killed at any moment leaves nothing unknown. What remains possible: docs/guarantees.md, Not promised.
"""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

import structlog
from redis.exceptions import RedisError
from sqlalchemy import ColumnElement, Connection, Engine, Select, Update, delete, exists, select, update

from models.database import in_transaction, read_transaction
from models.tables import AutoJoinMode, Event, EventStatus, Join, JoinSearch, JoinState, Mirror, UnblockedMembership
from models.types import JsonObject, db_now, db_now_plus, inline_literal
from models.views import auto_join_blocks, auto_join_domains, workspace_members
from worker.backoff import backoff
from worker.decision.payload import parse_time
from worker.decision.roles import slug_for
from worker.errors import BadRequestError, InvalidApiKeyError, NotFoundError, WorkOSUnavailableError, unexpected
from worker.kinds.membership import Membership
from worker.kinds.user import User
from worker.mirror.auto_join import add_joins, eligible, is_missing, same_person
from worker.queue.doorbell import Doorbell
from worker.workos_api.client import WorkOSClient

log = structlog.get_logger()

AT_ONCE = 8
JOINS_PER_ROUND = 200
USERS_PER_STEP = 200
"""Users of a domain that are searched in one transaction."""
CLAIM_SECONDS = 60.0
"""A join that was claimed longer ago and is still open has lost its worker."""
FRESH = timedelta(seconds=5)
"""How long reading and applying the newest events may take."""
SEND_SECONDS = 5.0
"""From before the listing to the create, by the monotonic clock."""
AGAIN_SECONDS = 2.0
MAX_BACKOFF_SECONDS = 600.0
MAX_ATTEMPTS = 8
"""A join that WorkOS has refused this often is failed, and an operator decides."""
OPEN = (JoinState.PENDING, JoinState.UNDO)


class ClaimedJoin(NamedTuple):
    """A join as this worker claimed it."""

    organization_id: str
    user_id: str
    state: JoinState
    complete_from: datetime | None
    attempted_at: datetime | None
    membership_id: str | None
    claim: int
    """Raised by each worker that claims the join; a worker with an older number writes nothing."""


class MirrorState(NamedTuple):
    """What the row of `mirror` says about joins: see `models.tables.Mirror`."""

    auto_join: AutoJoinMode
    role_map: dict[str, str]
    complete_to: datetime | None
    backfilled_at: datetime | None


class Member(NamedTuple):
    """The membership by which someone has access already, and when it was created."""

    membership_id: str
    created_at: datetime | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the mirror says about a join: `go` with a role; otherwise the state it gets, or None to wait."""

    go: bool
    state: JoinState | None = None
    reason: str | None = None
    membership_id: str | None = None
    """In the state `undo`: the membership to deactivate."""
    role: str = ""
    unblocked: frozenset[str] = frozenset()


WAIT = Verdict(go=False)


def waiting(engine: Engine) -> bool:
    """Return whether a join is due, or users of a domain are still to be searched."""
    with read_transaction(engine) as tx:
        return bool(tx.execute(select(exists().where(*_due()) | exists(select(JoinSearch.domain)))).scalar_one())


@dataclass(frozen=True, slots=True)
class CatchUp:
    """What provisioning needs from the repair of the mirror.

    Attributes:
        read: reads the events API into the inbox; starts a resync if events are missing there.
        update_complete_to: notes up to when everything in the inbox is applied.
    """

    read: Callable[[], object]
    update_complete_to: Callable[[], object]


def provision(
    engine: Engine,
    workos: WorkOSClient,
    lag: timedelta,
    bell: Doorbell,
    catch_up: CatchUp,
    stopping: Callable[[], bool] = lambda: False,
) -> int:
    """Work on the joins that are due, once; return how many are closed now.

    Args:
        engine: the database.
        workos: WorkOS.
        lag: how long WorkOS may withhold its newest events.
        bell: rung when events were read that are to be applied.
        catch_up: how the inbox is filled.
        stopping: returns whether to stop.

    Raises:
        InvalidApiKeyError: WorkOS refuses the key.
        WorkOSUnavailableError: WorkOS does not answer.
    """
    while not stopping() and _search(engine):
        pass
    catch_up.update_complete_to()
    joins = in_transaction(engine, _claim_due)
    if not joins or stopping():
        return 0
    if any(join.complete_from is None for join in joins):
        now = workos.now()
        for join in joins:
            _set_complete_from(engine, join, now)
    with ThreadPoolExecutor(AT_ONCE, "provision") as pool:
        closed = sum(pool.map(lambda join: not stopping() and _work(engine, workos, lag, join), joins))
    _ask_for_events(engine, workos, lag, bell, catch_up)
    return closed


def _due() -> tuple[ColumnElement[bool], ...]:
    return Join.state.in_([inline_literal(state) for state in OPEN]), Join.due_at <= db_now()


def _is(join: ClaimedJoin) -> tuple[ColumnElement[bool], ...]:
    return Join.organization_id == join.organization_id, Join.user_id == join.user_id


def _search(engine: Engine) -> bool:
    """Search some users of a domain that auto-joins now; return False if there is no such domain."""
    return in_transaction(engine, _search_step)


def _search_step(tx: Connection) -> bool:
    found = tx.execute(select(JoinSearch.__table__).limit(1).with_for_update(skip_locked=True)).one_or_none()
    if found is None:
        return False
    users = select(User.id).where(User.email_domain == found.domain, User.id > found.after).order_by(User.id)
    ids = list(tx.execute(users.limit(USERS_PER_STEP)).scalars())
    this_search = (JoinSearch.organization_id == found.organization_id, JoinSearch.domain == found.domain)
    if not ids:
        tx.execute(delete(JoinSearch).where(*this_search))
        return True
    which: ColumnElement[bool] = User.id.in_(ids)
    # Members and blocked people need no join.
    which &= is_missing(found.organization_id)
    if found.created_after is not None:
        which &= User.created_at >= found.created_after
    add_joins(tx, which, (found.cause, found.cause_id))
    tx.execute(update(JoinSearch).where(*this_search).values(after=ids[-1]))
    return True


def _claim_due(tx: Connection) -> list[ClaimedJoin]:
    """Claim the joins that are due, so that no other worker does.

    A claim is no lease: one worker claims hundreds of joins at once and needs seconds for each, and `due_at` is also
    when a failed one is retried. So a claim ends by itself, and its number is compared in the write that uses it.
    """
    columns = (Join.__table__.c[name] for name in ClaimedJoin._fields)
    due = select(*columns).where(*_due()).order_by(Join.due_at).limit(JOINS_PER_ROUND)
    joins = [ClaimedJoin(*join) for join in tx.execute(due.with_for_update(skip_locked=True))]
    claimed = [join._replace(claim=join.claim + 1) for join in joins]
    for join in claimed:
        tx.execute(update(Join).where(*_is(join)).values(due_at=db_now_plus(CLAIM_SECONDS), claim=join.claim))
    return claimed


def _set_complete_from(engine: Engine, join: ClaimedJoin, now: datetime) -> None:
    """Set the time up to which events must be applied before a create, for a join that is new or starts over.

    WorkOS's time is in whole seconds, so it is the end of that second. A join that another worker has claimed is left
    alone: that worker's create may still be in flight.
    """
    if join.complete_from is None:
        _write(engine, join, {"complete_from": now + timedelta(seconds=1)})


def _ask_for_events(engine: Engine, workos: WorkOSClient, lag: timedelta, bell: Doorbell, catch_up: CatchUp) -> None:
    """Catch up once the events API shows all events that a join waits for: the next catch-up may be minutes away."""
    inbox_to = select(Mirror.inbox_to).scalar_subquery()
    ahead = select(Join.complete_from).where(
        Join.state == JoinState.PENDING, inbox_to.is_(None) | (Join.complete_from > inbox_to)
    )
    with read_transaction(engine) as tx:
        known = Join.complete_from.is_not(None)
        oldest = tx.execute(ahead.where(known).order_by(Join.complete_from).limit(1)).scalar_one_or_none()
    if oldest is not None and workos.now() - lag >= oldest:
        catch_up.read()
        in_transaction(engine, lambda tx: tx.execute(_due_with_the_events()))
        bell.ring()


def _due_with_the_events() -> Update:
    """Make joins due whose events are in the inbox: once those are applied, they are fresh for a short time only."""
    soon = (Join.due_at > db_now(), Join.due_at <= db_now_plus(AGAIN_SECONDS))
    received = Join.complete_from <= select(Mirror.inbox_to).scalar_subquery()
    return update(Join).where(Join.state == JoinState.PENDING, *soon, received).values(due_at=db_now())


def _work(engine: Engine, workos: WorkOSClient, lag: timedelta, join: ClaimedJoin) -> bool:
    try:
        if join.state == JoinState.UNDO:
            return _undo(engine, workos, join)
        with read_transaction(engine) as tx:
            verdict = _judge(tx, join)
        return _join(engine, workos, lag, join, verdict) if verdict.go else _follow(engine, workos, join, verdict)
    except WorkOSUnavailableError as error:
        return _record_failure(engine, join, error)
    except (InvalidApiKeyError, RedisError):
        raise
    except Exception as error:  # noqa: BLE001 - one join must not stop the others
        return _record_failure(engine, join, WorkOSUnavailableError(unexpected(error)))


def _follow(engine: Engine, workos: WorkOSClient, join: ClaimedJoin, verdict: Verdict) -> bool:
    """Carry out a verdict that does not lead to a create."""
    if verdict.state is None:
        _write(engine, join, {"due_at": db_now_plus(AGAIN_SECONDS)})
        return False
    if verdict.state is JoinState.UNDO and verdict.membership_id:
        return _begin_undo(engine, workos, join, verdict.membership_id)
    return _close_join(engine, join, verdict.state, verdict.reason)


def _judge(tx: Connection, join: ClaimedJoin) -> Verdict:
    """Return what the mirror says about a join."""
    mirror = MirrorState(*tx.execute(select(*(Mirror.__table__.c[name] for name in MirrorState._fields))).one())
    unblocked = _unblocked(tx, join)
    if (known := _verdict_without_create(tx, join, mirror, unblocked)) is not None:
        return known
    role = tx.execute(_role_for(join)).scalar_one_or_none()
    if role is None:
        reason = "the address is not verified, or its domain does not auto-join into this workspace"
        return Verdict(go=False, state=JoinState.DROPPED, reason=reason)
    slug = slug_for(role, mirror.role_map)
    if slug is None:
        return Verdict(go=False, state=JoinState.FAILED, reason=f"ROLE_MAP maps no role of WorkOS to {role}")
    return Verdict(go=True, role=slug, unblocked=unblocked)


def _verdict_without_create(
    tx: Connection, join: ClaimedJoin, mirror: MirrorState, unblocked: frozenset[str]
) -> Verdict | None:
    """Return the verdict on a member, on someone who is blocked, or while events are missing; otherwise None."""
    membership = _membership_of(tx, join)
    if membership is not None and _was_inactive(join, membership.membership_id, membership.created_at, unblocked):
        return Verdict(go=False, state=JoinState.UNDO, membership_id=membership.membership_id)
    off = mirror.auto_join != AutoJoinMode.PROVISION
    if off and join.attempted_at is None:
        return Verdict(go=False, state=JoinState.DROPPED, reason=f"AUTO_JOIN is {mirror.auto_join}")
    if not _is_up_to_date(tx, join, mirror.complete_to if mirror.backfilled_at else None):
        return WAIT
    if membership is not None:
        return Verdict(go=False, state=JoinState.JOINED, reason=f"a member already: {membership.membership_id}")
    if (reason := _block_reason(tx, join)) is not None:
        return Verdict(go=False, state=JoinState.BLOCKED, reason=reason)
    return Verdict(go=False, state=JoinState.DROPPED, reason=f"AUTO_JOIN is {mirror.auto_join}") if off else None


def _membership_of(tx: Connection, join: ClaimedJoin) -> Member | None:
    """Return the membership by which someone has access already; None if they have none."""
    view = workspace_members.c
    of_person = (view.organization_id == join.organization_id, view.user_id == join.user_id)
    query = select(view.membership_id, Membership.created_at).join(Membership, Membership.id == view.membership_id)
    row = tx.execute(query.where(*of_person)).one_or_none()
    return Member(*row) if row else None


def _unblocked(tx: Connection, join: ClaimedJoin) -> frozenset[str]:
    """Return the ids of the person's memberships in the workspace that an operator unblocked."""
    of_person = (Membership.organization_id == join.organization_id, Membership.user_id == join.user_id)
    query = select(UnblockedMembership.membership_id).join(
        Membership, Membership.id == UnblockedMembership.membership_id
    )
    return frozenset(tx.execute(query.where(*of_person)).scalars())


def _block_reason(tx: Connection, join: ClaimedJoin) -> str | None:
    """Return why someone is blocked; None if they are not."""
    view = auto_join_blocks.c
    query = select(view.reason).where(view.organization_id == join.organization_id, view.user_id == join.user_id)
    return tx.execute(query.limit(1)).scalar_one_or_none()


def _was_inactive(join: ClaimedJoin, id: object, created_at: datetime | None, unblocked: frozenset[str]) -> bool:
    """Return whether an active membership is older than the unanswered attempt, which must have activated it."""
    attempted_at = join.attempted_at
    older = attempted_at is not None and (created_at is None or created_at < attempted_at)
    return older and id not in unblocked


def _role_for(join: ClaimedJoin) -> Select[str]:
    """Return a query for the role that someone gets by their verified domain; no row if they may no longer join."""
    view = auto_join_domains.c
    here = eligible().where(view.organization_id == join.organization_id, User.id == join.user_id)
    return here.with_only_columns(view.default_role)


def _is_up_to_date(tx: Connection, join: ClaimedJoin, complete_to: datetime | None) -> bool:
    """Return whether every event that concerns a join is applied: none is missing, and none has failed."""
    complete_from = tx.execute(select(Join.complete_from).where(*_is(join))).scalar_one_or_none()
    late = complete_from is None or complete_to is None or complete_to < complete_from
    return not late and not _has_failed_event(tx, join.user_id)


def _has_failed_event(tx: Connection, user_id: str) -> bool:
    """Return whether a failed membership event names the person by any of their ids, or may: it may be a removal."""
    failed = (Event.status == inline_literal(EventStatus.FAILED), Event.type.startswith("organization_membership."))
    bodies = tx.execute(select(Event.body).where(*failed)).scalars().all()
    ids = [id.encode() for id in same_person(tx, user_id)] if bodies else []
    return any(body is None or any(id in body for id in ids) for body in bodies)  # None: the payload was erased


def _join(engine: Engine, workos: WorkOSClient, lag: timedelta, join: ClaimedJoin, verdict: Verdict) -> bool:
    deadline = time.monotonic() + SEND_SECONDS
    listing = workos.memberships_of(join.organization_id, join.user_id)
    for found in listing.items:
        if not isinstance(found, dict) or not isinstance(found.get("id"), str):
            raise WorkOSUnavailableError("a membership without an id")
        if found.get("status") == "active":
            return _found_active(engine, workos, join, found, verdict.unblocked)
        if found["id"] not in verdict.unblocked:
            # As the view `auto_join_blocks` says it, of what WorkOS shows and the mirror may not have yet.
            reason = {"inactive": "deactivated", "pending": "invited"}.get(
                str(found.get("status")), "of no known status"
            )
            return _close_join(engine, join, JoinState.BLOCKED, f"{reason} in WorkOS", membership_id=found["id"])
    verdict = in_transaction(engine, _attempt, join, lag, listing.read_at)
    if not verdict.go:
        return _follow(engine, workos, join, verdict)
    made = workos.create_membership(join.organization_id, join.user_id, verdict.role, deadline)
    return _found_active(engine, workos, join._replace(attempted_at=listing.read_at), made, verdict.unblocked)


def _attempt(tx: Connection, join: ClaimedJoin, lag: timedelta, listed_at: datetime) -> Verdict:
    """Judge again after the listing; record the attempt if it may be made."""
    verdict = _judge(tx, join)
    if not verdict.go:
        return verdict
    fresh = select(Mirror.id).where(Mirror.complete_to >= listed_at - lag - FRESH)
    if tx.execute(fresh).one_or_none() is None:
        # The events API shows everything up to then by now.
        tx.execute(_update_claimed(join).values(complete_from=listed_at - lag))
        return WAIT
    # Before the call: whatever its result, the next attempt starts over.
    attempt = {"attempted_at": listed_at, "complete_from": None, "due_at": db_now_plus(CLAIM_SECONDS)}
    still_claimed = tx.execute(_update_claimed(join).values(**attempt, attempts=Join.attempts + 1)).rowcount > 0
    return verdict if still_claimed else WAIT


def _found_active(
    engine: Engine, workos: WorkOSClient, join: ClaimedJoin, membership: JsonObject, unblocked: frozenset[str]
) -> bool:
    """Close a join whose person is an active member; undo it if our create activated an inactive membership."""
    id = membership.get("id")
    if not isinstance(id, str):
        raise WorkOSUnavailableError("a membership without an id")
    if _was_inactive(join, id, parse_time(membership.get("created_at")), unblocked):
        return _begin_undo(engine, workos, join, id)
    log.info("joined", organization_id=join.organization_id, user_id=join.user_id, membership_id=id)
    return _close_join(engine, join, JoinState.JOINED, None, membership_id=id)


def _begin_undo(engine: Engine, workos: WorkOSClient, join: ClaimedJoin, membership_id: str) -> bool:
    if not _write(engine, join, {"state": JoinState.UNDO, "membership_id": membership_id}):
        return False
    return _undo(engine, workos, join._replace(membership_id=membership_id))


def _undo(engine: Engine, workos: WorkOSClient, join: ClaimedJoin) -> bool:
    if join.membership_id is None:
        raise WorkOSUnavailableError("the membership to deactivate is not known")
    try:
        workos.deactivate_membership(join.membership_id)
    except NotFoundError:
        log.info("undo_not_needed", membership_id=join.membership_id)  # it no longer exists
    log.error("join_undone", organization_id=join.organization_id, user_id=join.user_id)
    return _close_join(
        engine, join, JoinState.UNDONE, "inactive in WorkOS when the create activated it; inactive again"
    )


def _record_failure(engine: Engine, join: ClaimedJoin, error: WorkOSUnavailableError) -> bool:
    """Record a failed attempt; it is retried, unless it can never succeed."""
    with read_transaction(engine) as tx:
        now = tx.execute(select(Join.attempts, Join.state).where(*_is(join))).one_or_none()
    if now is None or now.state not in OPEN:
        return False
    undoing = now.state == JoinState.UNDO
    if isinstance(error, NotFoundError) and not undoing:
        return _close_join(
            engine, join, JoinState.DROPPED, "WorkOS does not know the person, the workspace or the role"
        )
    if isinstance(error, BadRequestError) and now.attempts >= MAX_ATTEMPTS and not undoing:
        return _close_join(engine, join, JoinState.FAILED, str(error))
    wait = backoff(now.attempts + 1, AGAIN_SECONDS, MAX_BACKOFF_SECONDS)
    # What was known before the call is too old for a retry.
    values = {"error": str(error), "due_at": db_now_plus(wait), "complete_from": None}
    log.warning("join_later", error=str(error), again_in_seconds=wait)
    _write(engine, join, values)
    return False


def _close_join(
    engine: Engine, join: ClaimedJoin, state: JoinState, reason: str | None, *, membership_id: str | None = None
) -> bool:
    values = {"state": state, "reason": reason, "settled_at": db_now()}
    if membership_id is not None:
        values["membership_id"] = membership_id
    if state is JoinState.JOINED:
        values["error"] = None
    _write(engine, join, values)
    return True


def _write(engine: Engine, join: ClaimedJoin, values: Mapping[str, object]) -> bool:
    """Update a join that is open and still claimed; False if an operator or another worker has changed it."""
    return in_transaction(engine, lambda tx: tx.execute(_update_claimed(join).values(values)).rowcount > 0)


def _update_claimed(join: ClaimedJoin) -> Update:
    return update(Join).where(*_is(join), Join.state.in_(OPEN), Join.claim == join.claim)
