"""Provisioning: make those members, through WorkOS's API, whom their verified domain lets in.

WorkOS decides who is a member; its answers can be lost, and a create activates a membership that was deactivated. So
WorkOS is looked at right before each create, and the create is sent only if

- every event is applied that is older than the look by the lag and `FRESH`: one of them may be a removal;
- every event is applied up to `complete_from`, a time after the join was noted and after the last call that failed;
- no more than `SEND_SECONDS` have passed since before the look.

Whatever fails or comes too late starts over with a new `complete_from`. Each attempt is on the row before its call, so
that a process killed at any instant leaves nothing unknown. What remains possible: docs/guarantees.md, Not promised.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import structlog
from redis.exceptions import RedisError
from sqlalchemy import ColumnElement, Connection, Engine, Select, Update, delete, exists, select, update

from models.database import in_transaction, read_transaction
from models.tables import Event, EventStatus, Join, JoinSearch, JoinState, Mirror, UnblockedMembership
from models.types import db_now, db_now_plus, inline_literal
from models.views import auto_join_blocks, auto_join_domains, workspace_members
from worker.decision.payload import parse_time
from worker.decision.roles import slug_for
from worker.errors import BadRequestError, InvalidApiKeyError, NotFoundError, WorkOSUnavailableError, unexpected
from worker.kinds.membership import Membership
from worker.kinds.user import User
from worker.mirror.auto_join import add_joins, eligible, is_missing
from worker.mirror.identity import same_person
from worker.queue.doorbell import Doorbell
from worker.workos_api.client import WorkOSClient

log = structlog.get_logger()

AT_ONCE = 8
STEP = 200
"""Joins looked at in one round, and users of a domain in one transaction."""
CLAIM_SECONDS = 60.0
"""One that was taken and not settled so long ago has lost its worker."""
FRESH = timedelta(seconds=5)
"""Reading and applying the newest events may take this long."""
SEND_SECONDS = 5.0
"""From before the look to the create, by a clock that nobody sets."""
AGAIN_SECONDS = 2.0
MAX_BACKOFF_SECONDS = 600.0
MAX_ATTEMPTS = 8
"""A join that WorkOS refuses so often is set aside for an operator."""
OPEN = (JoinState.PENDING, JoinState.UNDO)

Row = dict[str, Any]
"""A join as it was taken."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the mirror says of a join: `go` with a role; else the state it gets, or None to wait."""

    go: bool
    state: JoinState | None = None
    reason: str | None = None
    membership_id: str | None = None
    """In the state `undo`: what is to be deactivated."""
    role: str = ""
    unblocked: frozenset[str] = frozenset()


WAIT = Verdict(go=False)


def waiting(engine: Engine) -> bool:
    """Whether a join is due, or users are to be looked for."""
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
    """Work on what is due, once; return how many joins were settled.

    Args:
        engine: the database.
        workos: WorkOS.
        lag: how long WorkOS may hold its newest events back.
        bell: rung when events were read that wait to be applied.
        catch_up: how the inbox is filled.
        stopping: says whether to leave off.

    Raises:
        InvalidApiKeyError: WorkOS refuses the key.
        WorkOSUnavailableError: WorkOS does not answer.
    """
    while not stopping() and _search(engine):
        pass
    catch_up.update_complete_to()
    rows = _take(engine)
    if not rows or stopping():
        return 0
    if any(row["complete_from"] is None for row in rows):
        now = workos.now()
        for row in rows:
            _stamp(engine, row, now)
    with ThreadPoolExecutor(AT_ONCE, "provision") as pool:
        settled = sum(pool.map(lambda row: not stopping() and _work(engine, workos, lag, row), rows))
    _ask_for_events(engine, workos, lag, bell, catch_up)
    return settled


def _due() -> tuple[ColumnElement[bool], ...]:
    return Join.state.in_([inline_literal(state) for state in OPEN]), Join.due_at <= db_now()


def _here(row: Row) -> tuple[ColumnElement[bool], ...]:
    return Join.organization_id == row["organization_id"], Join.user_id == row["user_id"]


def _search(engine: Engine) -> bool:
    """Look through some users of a domain that began to auto-join; False if there is none such."""
    return in_transaction(engine, _search_step)


def _search_step(tx: Connection) -> bool:
    found = tx.execute(select(JoinSearch.__table__).limit(1).with_for_update(skip_locked=True)).one_or_none()
    if found is None:
        return False
    users = select(User.id).where(User.email_domain == found.domain, User.id > found.after).order_by(User.id)
    ids = list(tx.execute(users.limit(STEP)).scalars())
    here = (JoinSearch.organization_id == found.organization_id, JoinSearch.domain == found.domain)
    if not ids:
        tx.execute(delete(JoinSearch).where(*here))
        return True
    which: ColumnElement[bool] = User.id.in_(ids)
    # Those who are in already, or are kept out, would only be looked at in vain.
    which &= is_missing(found.organization_id)
    if found.created_after is not None:
        which &= User.created_at >= found.created_after
    add_joins(tx, which, (found.cause, found.cause_id))
    tx.execute(update(JoinSearch).where(*here).values(after=ids[-1]))
    return True


def _take(engine: Engine) -> list[Row]:
    """Take joins that are due, so that no other worker does."""
    return in_transaction(engine, _take_step)


def _take_step(tx: Connection) -> list[Row]:
    due = select(Join.__table__).where(*_due()).order_by(Join.due_at).limit(STEP).with_for_update(skip_locked=True)
    rows = [dict(row) for row in tx.execute(due).mappings()]
    for row in rows:
        row["claim"] += 1
        tx.execute(update(Join).where(*_here(row)).values(due_at=db_now_plus(CLAIM_SECONDS), claim=row["claim"]))
    return rows


def _stamp(engine: Engine, row: Row, now: datetime) -> None:
    """Note, for what was just asked for or begins anew, up to when events must be applied before anything is created.

    WorkOS tells its time in whole seconds; the end of the second is meant. Of a join that another worker may have in
    hand nothing is noted: its create may still be on the way.
    """
    if row["complete_from"] is None:
        _note(engine, row, {"complete_from": now + timedelta(seconds=1)})


def _ask_for_events(engine: Engine, workos: WorkOSClient, lag: timedelta, bell: Doorbell, catch_up: CatchUp) -> None:
    """Read the events API when it can show all that a join waits for: the clock's next catch-up may be minutes away."""
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
    """Make due what waits for events that are in the inbox: once they are applied, they do not stay fresh for long."""
    soon = (Join.due_at > db_now(), Join.due_at <= db_now_plus(AGAIN_SECONDS))
    told = Join.complete_from <= select(Mirror.inbox_to).scalar_subquery()
    return update(Join).where(Join.state == JoinState.PENDING, *soon, told).values(due_at=db_now())


def _work(engine: Engine, workos: WorkOSClient, lag: timedelta, row: Row) -> bool:
    try:
        if row["state"] == JoinState.UNDO:
            return _undo(engine, workos, row)
        with read_transaction(engine) as tx:
            verdict = _judge(tx, row)
        return _join(engine, workos, lag, row, verdict) if verdict.go else _follow(engine, workos, row, verdict)
    except WorkOSUnavailableError as error:
        return _refused(engine, row, error)
    except (InvalidApiKeyError, RedisError):
        raise
    except Exception as error:  # noqa: BLE001 - whatever one join meets, the others go on
        return _refused(engine, row, WorkOSUnavailableError(unexpected(error)))


def _follow(engine: Engine, workos: WorkOSClient, row: Row, verdict: Verdict) -> bool:
    """Do what a verdict says of someone who is not to be made a member now."""
    if verdict.state is None:
        _note(engine, row, {"due_at": db_now_plus(AGAIN_SECONDS)})
        return False
    if verdict.state is JoinState.UNDO and verdict.membership_id:
        return _begin_undo(engine, workos, row, verdict.membership_id)
    return _close_join(engine, row, verdict.state, verdict.reason)


def _judge(tx: Connection, row: Row) -> Verdict:
    """Return what the mirror says of a join."""
    mirror = tx.execute(select(Mirror.__table__)).one()
    unblocked = _unblocked(tx, row)
    if (known := _known_of(tx, row, mirror, unblocked)) is not None:
        return known
    role = tx.execute(_role_for(row)).scalar_one_or_none()
    if role is None:
        reason = "the address is not verified, or its domain does not auto-join into this workspace"
        return Verdict(go=False, state=JoinState.DROPPED, reason=reason)
    slug = slug_for(role, mirror.role_map)
    if slug is None:
        return Verdict(go=False, state=JoinState.FAILED, reason=f"ROLE_MAP maps no role of WorkOS to {role}")
    return Verdict(go=True, role=slug, unblocked=unblocked)


def _known_of(tx: Connection, row: Row, mirror: Any, unblocked: frozenset[str]) -> Verdict | None:
    """Return the verdict on someone who is in already or is kept out, or of whom not all is known."""
    membership = _membership_of(tx, row)
    if membership is not None and _was_inactive(row, membership.membership_id, membership.created_at, unblocked):
        return Verdict(go=False, state=JoinState.UNDO, membership_id=membership.membership_id)
    off = mirror.auto_join != "provision"
    if off and row["attempted_at"] is None:
        return Verdict(go=False, state=JoinState.DROPPED, reason=f"AUTO_JOIN is {mirror.auto_join}")
    if not _all_known(tx, row, mirror.complete_to if mirror.backfilled_at else None):
        return WAIT
    if membership is not None:
        return Verdict(go=False, state=JoinState.JOINED, reason=f"a member already: {membership.membership_id}")
    if (reason := _kept_out(tx, row)) is not None:
        return Verdict(go=False, state=JoinState.BLOCKED, reason=reason)
    return Verdict(go=False, state=JoinState.DROPPED, reason=f"AUTO_JOIN is {mirror.auto_join}") if off else None


def _membership_of(tx: Connection, row: Row) -> Any:
    """Return the id and the age of the membership by which someone is in already; None if they are not."""
    view = workspace_members.c
    inside = (view.organization_id == row["organization_id"], view.user_id == row["user_id"])
    query = select(view.membership_id, Membership.created_at).join(Membership, Membership.id == view.membership_id)
    return tx.execute(query.where(*inside)).one_or_none()


def _unblocked(tx: Connection, row: Row) -> frozenset[str]:
    """Return the ids of the memberships of a person in the workspace that an operator unblocked."""
    theirs = (Membership.organization_id == row["organization_id"], Membership.user_id == row["user_id"])
    query = select(UnblockedMembership.membership_id).join(
        Membership, Membership.id == UnblockedMembership.membership_id
    )
    return frozenset(tx.execute(query.where(*theirs)).scalars())


def _kept_out(tx: Connection, row: Row) -> str | None:
    """Return why someone is kept out; None if they are not."""
    view = auto_join_blocks.c
    query = select(view.reason).where(view.organization_id == row["organization_id"], view.user_id == row["user_id"])
    return tx.execute(query.limit(1)).scalar_one_or_none()


def _was_inactive(row: Row, id: Any, created_at: datetime | None, unblocked: frozenset[str]) -> bool:
    """Whether an active membership is older than the attempt that is not answered yet, which must have activated it."""
    attempted_at = row["attempted_at"]
    older = attempted_at is not None and (created_at is None or created_at < attempted_at)
    return older and id not in unblocked


def _role_for(row: Row) -> Select[str]:
    """Return a query for the role that someone gets by their verified domain; no row if it lets them in no longer."""
    view = auto_join_domains.c
    here = eligible().where(view.organization_id == row["organization_id"], User.id == row["user_id"])
    return here.with_only_columns(view.default_role)


def _all_known(tx: Connection, row: Row, complete_to: datetime | None) -> bool:
    """Whether everything that was done about a join is applied here: nothing is late, and nothing was set aside."""
    complete_from = tx.execute(select(Join.complete_from).where(*_here(row))).scalar_one_or_none()
    late = complete_from is None or complete_to is None or complete_to < complete_from
    return not late and not _has_failed_event(tx, row["user_id"])


def _has_failed_event(tx: Connection, user_id: str) -> bool:
    """Whether a failed event about a membership names the person by any of their ids, or may: it may be a removal."""
    failed = (Event.status == inline_literal(EventStatus.FAILED), Event.type.startswith("organization_membership."))
    bodies = tx.execute(select(Event.body).where(*failed)).scalars().all()
    ids = [id.encode() for id in same_person(tx, user_id)] if bodies else []
    return any(body is None or any(id in body for id in ids) for body in bodies)  # None: the payload was erased


def _join(engine: Engine, workos: WorkOSClient, lag: timedelta, row: Row, verdict: Verdict) -> bool:
    deadline = time.monotonic() + SEND_SECONDS
    look = workos.memberships_of(row["organization_id"], row["user_id"])
    for found in look.items:
        if not isinstance(found, dict) or not isinstance(found.get("id"), str):
            raise WorkOSUnavailableError("a membership without an id")
        if found.get("status") == "active":
            return _found_active(engine, workos, row, found, verdict.unblocked)
        if found["id"] not in verdict.unblocked:
            # As the view `auto_join_blocks` says it, of what WorkOS shows and the mirror may not have yet.
            reason = {"inactive": "deactivated", "pending": "invited"}.get(
                str(found.get("status")), "of no known status"
            )
            return _close_join(engine, row, JoinState.BLOCKED, f"{reason} in WorkOS", membership_id=found["id"])
    verdict = in_transaction(engine, _attempt, row, lag, look.read_at)
    if not verdict.go:
        return _follow(engine, workos, row, verdict)
    made = workos.create_membership(row["organization_id"], row["user_id"], verdict.role, deadline)
    return _found_active(engine, workos, row | {"attempted_at": look.read_at}, made, verdict.unblocked)


def _attempt(tx: Connection, row: Row, lag: timedelta, looked_at: datetime) -> Verdict:
    """Judge again after the look; note the attempt if it may be made."""
    verdict = _judge(tx, row)
    if not verdict.go:
        return verdict
    fresh = select(Mirror.id).where(Mirror.complete_to >= looked_at - lag - FRESH)
    if tx.execute(fresh).one_or_none() is None:
        tx.execute(_ours(row).values(complete_from=looked_at - lag))  # which the events API shows by now
        return WAIT
    # Before the call, so that whatever becomes of it the next try starts over.
    attempt = {"attempted_at": looked_at, "complete_from": None, "due_at": db_now_plus(CLAIM_SECONDS)}
    mine = tx.execute(_ours(row).values(**attempt, attempts=Join.attempts + 1)).rowcount > 0
    return verdict if mine else WAIT


def _found_active(
    engine: Engine, workos: WorkOSClient, row: Row, membership: dict[str, Any], unblocked: frozenset[str]
) -> bool:
    """Settle a join whose person is an active member; undo it if our create activated what was inactive."""
    id = membership.get("id")
    if _was_inactive(row, id, parse_time(membership.get("created_at")), unblocked):
        return _begin_undo(engine, workos, row, id)
    log.info("joined", organization_id=row["organization_id"], user_id=row["user_id"], membership_id=id)
    return _close_join(engine, row, JoinState.JOINED, None, membership_id=id)


def _begin_undo(engine: Engine, workos: WorkOSClient, row: Row, membership_id: Any) -> bool:
    if not _note(engine, row, {"state": JoinState.UNDO, "membership_id": membership_id}):
        return False
    return _undo(engine, workos, row | {"membership_id": membership_id})


def _undo(engine: Engine, workos: WorkOSClient, row: Row) -> bool:
    try:
        workos.deactivate_membership(row["membership_id"])
    except NotFoundError:
        log.info("undo_not_needed", membership_id=row["membership_id"])  # it is gone altogether
    log.error("join_undone", organization_id=row["organization_id"], user_id=row["user_id"])
    return _close_join(engine, row, JoinState.UNDONE, "inactive in WorkOS when the create activated it; inactive again")


def _refused(engine: Engine, row: Row, error: WorkOSUnavailableError) -> bool:
    """Note what WorkOS answered instead: to be tried again, unless it can never be."""
    with read_transaction(engine) as tx:
        now = tx.execute(select(Join.attempts, Join.state).where(*_here(row))).one_or_none()
    if now is None or now.state not in OPEN:
        return False
    undoing = now.state == JoinState.UNDO
    if isinstance(error, NotFoundError) and not undoing:
        return _close_join(engine, row, JoinState.DROPPED, "WorkOS does not know the person, the workspace or the role")
    if isinstance(error, BadRequestError) and now.attempts >= MAX_ATTEMPTS and not undoing:
        return _close_join(engine, row, JoinState.FAILED, str(error))
    wait = min(AGAIN_SECONDS * 2.0 ** min(now.attempts, 20), MAX_BACKOFF_SECONDS)
    # What was known before the call is too old when it is tried again.
    values = {"error": str(error), "due_at": db_now_plus(wait), "complete_from": None}
    log.warning("join_later", error=str(error), again_in_seconds=wait)
    _note(engine, row, values)
    return False


def _close_join(
    engine: Engine, row: Row, state: JoinState, reason: str | None, *, membership_id: str | None = None
) -> bool:
    values = {"state": state, "reason": reason, "settled_at": db_now()}
    if membership_id is not None:
        values["membership_id"] = membership_id
    if state is JoinState.JOINED:
        values["error"] = None
    _note(engine, row, values)
    return True


def _note(engine: Engine, row: Row, values: dict[str, Any]) -> bool:
    """Write to a join that is still open and ours; False if an operator or another worker has it now."""
    return in_transaction(engine, lambda tx: tx.execute(_ours(row).values(values)).rowcount > 0)


def _ours(row: Row) -> Update:
    return update(Join).where(*_here(row), Join.state.in_(OPEN), Join.claim == row["claim"])
