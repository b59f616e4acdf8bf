"""Ends the WorkOS sessions of people who lost access (`REVOKE_SESSIONS`).

`worker.mirror.lost_access` records whose access ended. Each loss is confirmed by a read of the object that ended it.
Then all of the person's sessions are listed, and those of the workspace are revoked; of a deleted user, all of them.
Right before each revocation the mirror is asked again: a person who has access again keeps their sessions.

A revocation whose answer was lost is repeated, so each session is revoked at least once.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

import structlog
from redis.exceptions import RedisError
from sqlalchemy import ColumnElement, Connection, Engine, Update, exists, select, update
from sqlalchemy.orm import Session

from models.access import role_of
from models.database import in_transaction, is_transient, read_transaction
from models.outcomes import Finding
from models.tables import Action, Cause, Revocation, RevocationState, Via
from models.types import db_now, db_now_plus, inline_literal
from worker import audit
from worker.backoff import backoff
from worker.errors import BadRequestError, InvalidApiKeyError, NotFoundError, WorkOSError, reason_of
from worker.kinds import KINDS, Kind
from worker.kinds.membership import MEMBERSHIP
from worker.kinds.user import USER, User
from worker.metrics import LOST_TO_REVOKED, REVOCATION_FAILURES, SESSIONS_REVOKED, Counters
from worker.mirror.lost_access import EVERYWHERE, INACTIVE, SETTING
from worker.repair.reads import confirmed_read
from worker.workos_api.client import WorkOSClient

log = structlog.get_logger()

CONCURRENT_PEOPLE = 4
CLAIM_SECONDS = 60.0
"""A revocation claimed more than this many seconds ago, and still pending, belongs to a dead worker."""
RETRY_SECONDS = 2.0
MAX_BACKOFF_SECONDS = 600.0
ENDED = ("revoked", "expired")
"""The statuses of sessions that have ended. Any other counts as active."""
PENDING: ColumnElement[bool] = Revocation.state == inline_literal(RevocationState.PENDING)


class Loss(NamedTuple):
    """A pending revocation as this worker claimed it; the fields are columns."""

    organization_id: str
    user_id: str
    kind: str
    object_id: str
    event_id: str | None
    attempts: int
    claim: int


def waiting(engine: Engine) -> bool:
    """Return whether a revocation is due."""
    with read_transaction(engine) as tx:
        return bool(tx.execute(select(exists().where(*_due()))).scalar_one())


def _due() -> tuple[ColumnElement[bool], ...]:
    return PENDING, Revocation.due_at <= db_now()


@dataclass(frozen=True, slots=True)
class SessionRevoker:
    """Works on revocations that are due. `stopping` returns whether to stop."""

    engine: Engine
    workos: WorkOSClient
    counters: Counters
    stopping: Callable[[], bool] = lambda: False

    def all(self) -> None:
        """Work until no revocation is due; one that fails is retried later.

        Raises:
            InvalidApiKeyError: WorkOS refuses the API key.
            redis.exceptions.RedisError: the Redis of the rate limits is unavailable.
            sqlalchemy.exc.DBAPIError: the database is unavailable.
        """
        with ThreadPoolExecutor(CONCURRENT_PEOPLE, "sessions") as pool:
            for working in [pool.submit(self._until_none_is_due) for _ in range(CONCURRENT_PEOPLE)]:
                working.result()

    def _until_none_is_due(self) -> None:
        while not self.stopping() and (loss := in_transaction(self.engine, _claim_next)):
            self._work(loss)

    def _work(self, loss: Loss) -> None:
        try:
            self._revoke(loss)
        except (InvalidApiKeyError, RedisError):
            raise
        except Exception as error:
            if is_transient(error):
                raise  # the database is unavailable; the claim expires
            problem = reason_of(error)
            wait = backoff(loss.attempts + 1, RETRY_SECONDS, MAX_BACKOFF_SECONDS)
            failed = _if_claimed(loss).values(error=problem, attempts=loss.attempts + 1, due_at=db_now_plus(wait))
            in_transaction(self.engine, lambda tx: tx.execute(failed))
            self.counters.add(REVOCATION_FAILURES)
            names = {"organization_id": loss.organization_id, "user_id": loss.user_id}
            log.warning("revocation_failed", **names, problem=problem, again_in_seconds=wait)

    def _revoke(self, loss: Loss) -> None:
        self._confirm(loss)
        for session_id in self._active_sessions(loss):
            self.workos.wait_to_revoke()
            if self.stopping():
                in_transaction(self.engine, lambda tx: tx.execute(_if_claimed(loss).values(due_at=db_now())))
                return
            if not in_transaction(self.engine, _is_still_lost, loss):
                return
            try:
                self.workos.revoke_session(session_id)
            except NotFoundError:
                continue  # it has ended; if WorkOS says so by another error, the next listing does not show it
            in_transaction(self.engine, _count, loss)
            self.counters.add(SESSIONS_REVOKED)
        seconds = in_transaction(self.engine, _finish, loss)
        if seconds is not None:
            self.counters.observe(LOST_TO_REVOKED, [seconds])

    def _confirm(self, loss: Loss) -> None:
        """Read what ended the access, and the person's memberships; raise `WorkOSError` if they may have access.

        The reads correct the mirror. So if the person does have access, the next attempt drops the revocation.
        """
        kind = KINDS[loss.kind]
        if not self._is_over(kind, loss.object_id, loss):
            raise WorkOSError(f"WorkOS shows {kind} {loss.object_id} as active")
        if kind is not MEMBERSHIP:
            return
        try:
            listed = self.workos.memberships_of(loss.organization_id, loss.user_id).items
        except (NotFoundError, BadRequestError):
            return  # the workspace or the user is gone too
        for found in listed:
            # Its event may not have arrived.
            if isinstance(found, dict) and found.get("status") == "active" and isinstance(id := found.get("id"), str):
                self._is_over(MEMBERSHIP, id, loss)
                raise WorkOSError(f"WorkOS shows membership {id} as active")

    def _is_over(self, kind: Kind, id: str, loss: Loss) -> bool:
        """Read an object from WorkOS; return whether it is gone or inactive."""
        cause = Cause.EVENT, loss.event_id or SETTING
        result = confirmed_read(self.engine, self.workos, kind, id, cause, lambda _tx, _result: None)
        after = result.after
        gone = after is None or after.deleted or after.content.get("status") == INACTIVE
        return gone and result.finding is not Finding.ANOMALY

    def _active_sessions(self, loss: Loss) -> list[str]:
        """Return the ids of the sessions to end. All pages are read first, because revoking may shift them."""
        found: list[object] = []
        after = None
        while True:
            try:
                page = self.workos.sessions_of(loss.user_id, after)
            except NotFoundError:
                return []  # the user is gone, and with them all sessions
            found += page.items
            if (after := page.after) is None:
                break
        return [
            session["id"]
            for session in found
            if isinstance(session, dict) and session.get("status") not in ENDED
            if loss.organization_id in (EVERYWHERE, session.get("organization_id"))
        ]


def _claim_next(tx: Connection) -> Loss | None:
    """Claim a revocation that is due, so that no other worker does; drop those of people who have access again."""
    columns = (Revocation.__table__.c[name] for name in Loss._fields)
    due = select(*columns).where(*_due()).order_by(Revocation.due_at).limit(1).with_for_update(skip_locked=True)
    while row := tx.execute(due).one_or_none():
        loss = Loss(*row)
        if not _drop_if_accessible(tx, loss):
            claimed = loss._replace(claim=loss.claim + 1)
            tx.execute(_if_claimed(loss).values(claim=claimed.claim, due_at=db_now_plus(CLAIM_SECONDS)))
            return claimed
    return None


def _is_still_lost(tx: Connection, loss: Loss) -> bool:
    """Return whether the claim holds and the person has no access; extend the claim."""
    extended = tx.execute(_if_claimed(loss).values(due_at=db_now_plus(CLAIM_SECONDS)))
    return extended.rowcount > 0 and not _drop_if_accessible(tx, loss)


def _drop_if_accessible(tx: Connection, loss: Loss) -> bool:
    if loss.organization_id == EVERYWHERE:
        gone = select(User.id).where(User.id == loss.user_id, User.deleted_by.is_not(None))
        accessible = tx.execute(gone).one_or_none() is None
    else:
        with Session(bind=tx) as session:
            accessible = role_of(session, loss.user_id, loss.organization_id) is not None
    if accessible:
        dropped = {"state": RevocationState.DROPPED, "reason": "the person has access again", "settled_at": db_now()}
        tx.execute(_if_claimed(loss).values(dropped))
    return accessible


def _count(tx: Connection, loss: Loss) -> None:
    """Count a revoked session, even if the claim is lost meanwhile."""
    tx.execute(update(Revocation).where(*_of(loss)).values(sessions=Revocation.sessions + 1))


def _finish(tx: Connection, loss: Loss) -> float | None:
    """Settle a revocation, unless the claim is lost; return the seconds since an event's time if sessions ended."""
    done = {"state": RevocationState.DONE, "settled_at": db_now(), "error": None}
    returned = (Revocation.sessions, Revocation.since, Revocation.settled_at)
    row = tx.execute(_if_claimed(loss).values(done).returning(*returned)).one_or_none()
    if row is None or not row.sessions:
        return None
    about = {"kind": USER.name, "object_id": loss.user_id, "organization_id": loss.organization_id or None}
    because = f"{loss.kind} {loss.object_id}"
    actor = audit.Actor(SETTING, Via.SETTINGS)
    audit.note(tx, actor, Action.REVOKE_SESSIONS, **about, sessions=row.sessions, because=because)
    settled_at: datetime | None = row.settled_at if loss.event_id else None
    return (settled_at - row.since).total_seconds() if settled_at else None


def _of(loss: Loss) -> tuple[ColumnElement[bool], ...]:
    return Revocation.organization_id == loss.organization_id, Revocation.user_id == loss.user_id


def _if_claimed(loss: Loss) -> Update:
    return update(Revocation).where(*_of(loss), PENDING, Revocation.claim == loss.claim)
