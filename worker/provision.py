"""Provisioning: make those members, through WorkOS's API, whom their verified domain lets in.

WorkOS decides who is a member; its answers can be lost, and a create activates a membership that was deactivated. So:
nothing is created before all events up to a time after everything that was done about this join are applied here, for
one of them may be a removal; WorkOS is looked at right before; and after an answer that did not come all of that begins
anew. Every step is on the row before the call is made, so that a process killed at any instant leaves nothing unknown.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import structlog
from redis.exceptions import RedisError
from sqlalchemy import ColumnElement, Connection, Engine, Select, delete, exists, select, update

from models.database import reading, write
from models.tables import Event, EventStatus, Join, JoinSearch, JoinState, LiftedBlock, Membership, Mirror, User
from models.types import constant, db_in, db_now
from models.views import auto_join_blocks, auto_join_domains, workspace_members
from worker.decision.roles import slug_for
from worker.decision.snapshots import parse_time
from worker.directory.client import (
    Directory,
    LimitedError,
    NotThereError,
    QueryRefusedError,
    RefusedKeyError,
    UnreadableError,
)
from worker.errors import unexpected
from worker.mirror.auto_join import add_joins
from worker.repair.catch_up import catch_up
from worker.repair.schedule import begin_unless_busy
from worker.signals.doorbell import Doorbell

log = structlog.get_logger()

AT_ONCE = 8
STEP = 200
"""Joins looked at in one round, and users of a domain in one transaction."""
CLAIM_SECONDS = 60.0
"""One that was taken and not settled so long ago has lost its worker."""
AGAIN_SECONDS = 2.0
LONGEST_BACKOFF_SECONDS = 600.0
MOST_ATTEMPTS = 8
"""A join that WorkOS refuses so often is set aside for an operator."""
OPEN = (JoinState.PENDING, JoinState.UNDO)

Row = dict[str, Any]
"""A join as it was taken."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the mirror says of a join: `go` with a role; else the state it is settled with, or None to wait."""

    go: bool
    state: JoinState | None = None
    reason: str | None = None
    role: str = ""
    lifted: frozenset[str] = frozenset()


WAIT = Verdict(go=False)


def waiting(engine: Engine) -> bool:
    """Whether a join is due, or users are to be looked for."""
    with reading(engine) as tx:
        return bool(tx.execute(select(exists().where(*_due()) | exists(select(JoinSearch.domain)))).scalar_one())


def provision(
    engine: Engine, directory: Directory, lag: timedelta, bell: Doorbell, stopping: Callable[[], bool] = lambda: False
) -> int:
    """Work on what is due, once; return how many joins were settled.

    Args:
        engine: the database.
        directory: WorkOS.
        lag: how long WorkOS may hold its newest events back.
        bell: rung when events were read that wait to be applied.
        stopping: says whether to leave off.

    Raises:
        RefusedKeyError: WorkOS refuses the key.
        UnreadableError: WorkOS does not answer.
    """
    while not stopping() and _search(engine):
        pass
    rows = _take(engine)
    if not rows or stopping():
        return 0
    if any(row["complete_from"] is None for row in rows):
        now = directory.now()
        for row in rows:
            _stamp(engine, row, now)
    with ThreadPoolExecutor(AT_ONCE, "provision") as pool:
        settled = sum(pool.map(lambda row: not stopping() and _work(engine, directory, row), rows))
    _ask_for_events(engine, directory, lag, bell)
    return settled


def _due() -> tuple[ColumnElement[bool], ...]:
    return Join.state.in_([constant(state) for state in OPEN]), Join.due_at <= db_now()


def _here(row: Row) -> tuple[ColumnElement[bool], ...]:
    return Join.organization_id == row["organization_id"], Join.user_id == row["user_id"]


def _search(engine: Engine) -> bool:
    """Look through some users of a domain that began to auto-join; False if there is none such."""
    return write(engine, _search_step)


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
    view, block = workspace_members.c, auto_join_blocks.c
    which &= ~exists().where(view.organization_id == found.organization_id, view.user_id == User.id)
    which &= ~exists().where(block.organization_id == found.organization_id, block.user_id == User.id)
    if found.created_after is not None:
        which &= User.created_at >= found.created_after
    add_joins(tx, which, (found.cause, found.cause_id))
    tx.execute(update(JoinSearch).where(*here).values(after=ids[-1]))
    return True


def _take(engine: Engine) -> list[Row]:
    """Take joins that are due, so that no other worker does."""
    return write(engine, _take_step)


def _take_step(tx: Connection) -> list[Row]:
    due = select(Join.__table__).where(*_due()).order_by(Join.due_at).limit(STEP).with_for_update(skip_locked=True)
    rows = [dict(row) for row in tx.execute(due).mappings()]
    for row in rows:
        row["claim"] += 1
        tx.execute(update(Join).where(*_here(row)).values(due_at=db_in(CLAIM_SECONDS), claim=row["claim"]))
    return rows


def _stamp(engine: Engine, row: Row, now: datetime) -> None:
    """Note, for what was just asked for or begins anew, up to when events must be applied before anything is created.

    WorkOS tells its time in whole seconds; the end of the second is meant. Of a join that another worker may have in
    hand nothing is noted: its create may still be on the way.
    """
    if row["complete_from"] is None:
        _note(engine, row, {"complete_from": now + timedelta(seconds=1)})


def _ask_for_events(engine: Engine, directory: Directory, lag: timedelta, bell: Doorbell) -> None:
    """Read the events API when it can show all that a join waits for: the clock's next catch-up may be minutes away."""
    inbox_to = select(Mirror.inbox_to).scalar_subquery()
    ahead = select(Join.complete_from).where(
        Join.state == JoinState.PENDING, inbox_to.is_(None) | (Join.complete_from > inbox_to)
    )
    with reading(engine) as tx:
        known = Join.complete_from.is_not(None)
        oldest = tx.execute(ahead.where(known).order_by(Join.complete_from).limit(1)).scalar_one_or_none()
    if oldest is not None and directory.now() - lag >= oldest:
        report = catch_up(engine, directory, lag=lag)
        bell.ring()
        if report.missed:
            write(engine, lambda tx: begin_unless_busy(tx, "missed events"))


def _work(engine: Engine, directory: Directory, row: Row) -> bool:
    try:
        if row["state"] == JoinState.UNDO:
            return _undo(engine, directory, row)
        with reading(engine) as tx:
            verdict = _judge(tx, row)
        if not verdict.go:
            return _settle(engine, row, verdict.state, verdict.reason) if verdict.state else _later(engine, row)
        return _join(engine, directory, row, verdict)
    except UnreadableError as error:
        return _refused(engine, row, error)
    except (RefusedKeyError, RedisError):
        raise
    except Exception as error:  # noqa: BLE001 - whatever one join meets, the others go on
        return _refused(engine, row, UnreadableError(unexpected(error)))


def _judge(tx: Connection, row: Row) -> Verdict:
    """Return what the mirror says of a join."""
    mirror = tx.execute(select(Mirror.__table__)).one()
    if mirror.auto_join != "provision":
        return Verdict(go=False, state=JoinState.DROPPED, reason=f"AUTO_JOIN is {mirror.auto_join}")
    if not _all_known(tx, row, mirror.complete_to if mirror.backfilled_at else None):
        return WAIT
    known = _known_of(tx, row)
    if known is not None:
        return known
    role = tx.execute(_role_for(row)).scalar_one_or_none()
    if role is None:
        reason = "the address is not verified, or its domain does not auto-join into this workspace"
        return Verdict(go=False, state=JoinState.DROPPED, reason=reason)
    slug = slug_for(role, mirror.role_map)
    if slug is None:
        return Verdict(go=False, state=JoinState.FAILED, reason=f"ROLE_MAP maps no role of WorkOS to {role}")
    theirs = (Membership.organization_id == row["organization_id"], Membership.user_id == row["user_id"])
    lifted = select(LiftedBlock.membership_id).where(
        LiftedBlock.membership_id.in_(select(Membership.id).where(*theirs))
    )
    return Verdict(go=True, role=slug, lifted=frozenset(tx.execute(lifted).scalars()))


def _known_of(tx: Connection, row: Row) -> Verdict | None:
    """Return the verdict on someone who is in already, or is kept out."""
    member, block = workspace_members.c, auto_join_blocks.c
    inside = (member.organization_id == row["organization_id"], member.user_id == row["user_id"])
    if (membership := tx.execute(select(member.membership_id).where(*inside)).scalar_one_or_none()) is not None:
        return Verdict(go=False, state=JoinState.JOINED, reason=f"a member already: {membership}")
    out = (block.organization_id == row["organization_id"], block.user_id == row["user_id"])
    if (reason := tx.execute(select(block.reason).where(*out).limit(1)).scalar_one_or_none()) is not None:
        return Verdict(go=False, state=JoinState.BLOCKED, reason=reason)
    return None


def _role_for(row: Row) -> Select[str]:
    """Return a query for the role that someone gets by their verified domain; no row if it lets them in no longer."""
    view = auto_join_domains.c
    verified = (User.id == row["user_id"], User.deleted_by.is_(None), User.email_verified.is_(True))
    on_domain = select(view.default_role).join(User, User.email_domain == view.domain)
    return on_domain.where(view.organization_id == row["organization_id"], *verified)


def _all_known(tx: Connection, row: Row, complete_to: datetime | None) -> bool:
    """Whether everything that was done about a join is applied here: nothing is late, and nothing was set aside."""
    complete_from = tx.execute(select(Join.complete_from).where(*_here(row))).scalar_one_or_none()
    late = complete_from is None or complete_to is None or complete_to < complete_from
    return not late and not _set_aside(tx, row["user_id"])


def _set_aside(tx: Connection, user_id: str) -> bool:
    """Whether a failed event about a membership names the person, or may have done so: it may be a removal."""
    failed = (Event.status == constant(EventStatus.FAILED), Event.type.startswith("organization_membership."))
    bodies = tx.execute(select(Event.body).where(*failed)).scalars()
    return any(body is None or user_id.encode() in body for body in bodies)  # None: the payload was erased


def _join(engine: Engine, directory: Directory, row: Row, verdict: Verdict) -> bool:
    look = directory.memberships_of(row["organization_id"], row["user_id"])
    for found in look.items:
        if not isinstance(found, dict) or not isinstance(found.get("id"), str):
            raise UnreadableError("a membership without an id")
        if found.get("status") == "active":
            return _found_active(engine, directory, row, found, verdict.lifted)
        if found["id"] not in verdict.lifted:
            reason = {"inactive": "deactivated", "pending": "invited"}.get(
                str(found.get("status")), "of no known status"
            )
            return _settle(engine, row, JoinState.BLOCKED, f"{reason} in WorkOS", membership_id=found["id"])
    # Before the call, so that whatever becomes of it the next try begins anew.
    attempt = {"attempted_at": look.read_at, "complete_from": None, "due_at": db_in(CLAIM_SECONDS)}
    if not _note(engine, row, {**attempt, "attempts": Join.attempts + 1}):
        return False
    made = directory.create_membership(row["organization_id"], row["user_id"], verdict.role)
    return _found_active(engine, directory, row | {"attempted_at": look.read_at}, made, verdict.lifted)


def _found_active(
    engine: Engine, directory: Directory, row: Row, membership: dict[str, Any], lifted: frozenset[str]
) -> bool:
    """Settle a join whose person is an active member; undo it if our create activated what was inactive."""
    id, made_at, attempted_at = membership.get("id"), parse_time(membership.get("created_at")), row["attempted_at"]
    older = attempted_at is not None and (made_at is None or made_at < attempted_at)
    if older and id not in lifted:
        _note(engine, row, {"state": JoinState.UNDO, "membership_id": id})
        return _undo(engine, directory, row | {"membership_id": id})
    log.info("joined", organization_id=row["organization_id"], user_id=row["user_id"], membership_id=id)
    return _settle(engine, row, JoinState.JOINED, None, membership_id=id)


def _undo(engine: Engine, directory: Directory, row: Row) -> bool:
    try:
        directory.deactivate_membership(row["membership_id"])
    except NotThereError:
        log.info("undo_not_needed", membership_id=row["membership_id"])  # it is gone altogether
    log.error("join_undone", organization_id=row["organization_id"], user_id=row["user_id"])
    return _settle(engine, row, JoinState.UNDONE, "inactive in WorkOS when the create activated it; inactive again")


def _refused(engine: Engine, row: Row, error: UnreadableError) -> bool:
    """Note what WorkOS answered instead: to be tried again, unless it can never be."""
    with reading(engine) as tx:
        now = tx.execute(select(Join.attempts, Join.state).where(*_here(row))).one_or_none()
    if now is None or now.state not in OPEN:
        return False
    undoing = now.state == JoinState.UNDO
    if isinstance(error, NotThereError) and not undoing:
        return _settle(engine, row, JoinState.DROPPED, "WorkOS does not know the person, the workspace or the role")
    if isinstance(error, QueryRefusedError) and now.attempts >= MOST_ATTEMPTS and not undoing:
        return _settle(engine, row, JoinState.FAILED, str(error))
    wait = min(AGAIN_SECONDS * 2.0 ** min(now.attempts, 20), LONGEST_BACKOFF_SECONDS)
    values = {"error": str(error), "due_at": db_in(wait)}
    if isinstance(error, LimitedError):  # nothing was done: what was known still is
        values["complete_from"] = row["complete_from"]
    log.warning("join_later", error=str(error), again_in_seconds=wait)
    _note(engine, row, values)
    return False


def _later(engine: Engine, row: Row) -> bool:
    _note(engine, row, {"due_at": db_in(AGAIN_SECONDS)})
    return False


def _settle(
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
    ours = update(Join).where(*_here(row), Join.state.in_(OPEN), Join.claim == row["claim"])
    return write(engine, lambda tx: tx.execute(ours.values(values)).rowcount > 0)
