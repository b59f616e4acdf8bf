"""Ends the WorkOS sessions of people who lost access (`REVOKE_SESSIONS`).

`worker.mirror.lost_access` records whose access ended. Each loss is confirmed by a read of the object that ended it.
Then all of the person's sessions are listed, and those of the workspace are revoked; of a deleted user, all of them.
Right before each revocation the mirror is asked again: a person who has access again keeps their sessions.

A revocation whose answer was lost is repeated, so each session is revoked at least once.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import structlog
from sqlalchemy import ColumnElement, Connection, Engine, Update, exists, select, update
from sqlalchemy.orm import Session

from models.access import role_of
from models.database import in_transaction, read_transaction
from models.outcomes import Finding
from models.tables import Cause, Revocation, RevocationState
from models.types import db_now, db_now_plus
from worker.backoff import backoff
from worker.errors import BadRequestError, InvalidApiKeyError, NotFoundError, RateLimitedError, WorkOSError
from worker.kinds import KINDS, Kind
from worker.kinds.membership import MEMBERSHIP
from worker.kinds.user import User
from worker.metrics import LOST_TO_REVOKED, REVOCATION_FAILURES, Counters
from worker.mirror.lost_access import EVERYWHERE, INACTIVE, PENDING, SETTING, settle
from worker.repair.reads import confirmed_read, why_failed
from worker.workos_api.client import WorkOSClient

log = structlog.get_logger()

CONCURRENT_PEOPLE = 4
CLAIM_SECONDS = 60.0
"""A revocation claimed more than this many seconds ago, and still pending, belongs to a dead worker."""
RETRY_SECONDS = 2.0
MAX_BACKOFF_SECONDS = 600.0
ENDED = ("revoked", "expired")
"""The statuses of sessions that have ended. Any other counts as active."""
NOT_DONE = (NotFoundError, BadRequestError, RateLimitedError, InvalidApiKeyError)
"""Answers to a revocation that ended no session. After any other error, it may have."""


class ClaimedRevocation(NamedTuple):
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

    def revoke_due(self) -> None:
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
        while not self.stopping() and (revocation := in_transaction(self.engine, _claim_next)):
            self._work(revocation)

    def _work(self, revocation: ClaimedRevocation) -> None:
        try:
            self._revoke(revocation)
        except Exception as error:  # noqa: BLE001 - `why_failed` raises what is not about the person; the claim expires
            problem = why_failed(self.workos, error)
            wait = backoff(revocation.attempts + 1, RETRY_SECONDS, MAX_BACKOFF_SECONDS)
            failed = _update_if_claimed(revocation).values(
                error=problem, attempts=revocation.attempts + 1, due_at=db_now_plus(wait)
            )
            in_transaction(self.engine, Connection.execute, failed)
            self.counters.add(REVOCATION_FAILURES)
            names = {"organization_id": revocation.organization_id, "user_id": revocation.user_id}
            log.warning("revocation_failed", **names, problem=problem, again_in_seconds=wait)

    def _revoke(self, revocation: ClaimedRevocation) -> None:
        self._confirm(revocation)
        session_ids, problem = self._active_sessions(revocation)
        for session_id in session_ids:
            self.workos.wait_to_revoke()
            if self.stopping():
                in_transaction(self.engine, Connection.execute, _update_if_claimed(revocation).values(due_at=db_now()))
                return
            if not in_transaction(self.engine, _count_if_still_lost, revocation):
                return
            try:
                self.workos.revoke_session(session_id)
            except NOT_DONE as error:
                uncounted = _update_if_claimed(revocation).values(sessions=Revocation.sessions - 1)
                in_transaction(self.engine, Connection.execute, uncounted)
                if isinstance(error, BadRequestError):
                    problem = error  # about this session, so the others are revoked; a listing shows whether it ended
                elif not isinstance(error, NotFoundError):
                    raise
        if problem:
            raise problem
        seconds = in_transaction(self.engine, _finish, revocation)
        if seconds is not None:
            self.counters.observe(LOST_TO_REVOKED, [seconds])

    def _confirm(self, revocation: ClaimedRevocation) -> None:
        """Read what ended the access, and the person's memberships; raise `WorkOSError` if they may have access.

        The reads correct the mirror. So if the person does have access, the next attempt drops the revocation.
        """
        kind = KINDS[revocation.kind]
        if not self._is_over(kind, revocation.object_id, revocation):
            raise WorkOSError(f"WorkOS shows {kind} {revocation.object_id} as active")
        if kind is not MEMBERSHIP:
            return
        try:
            listed = self.workos.memberships_of(revocation.organization_id, revocation.user_id).items
        except (NotFoundError, BadRequestError):
            return  # the workspace or the user is gone too
        for found in listed:
            # Its event may not have arrived.
            if isinstance(found, dict) and found.get("status") == "active" and isinstance(id := found.get("id"), str):
                self._is_over(MEMBERSHIP, id, revocation)
                raise WorkOSError(f"WorkOS shows membership {id} as active")

    def _is_over(self, kind: Kind, id: str, revocation: ClaimedRevocation) -> bool:
        """Read an object from WorkOS; return whether it is gone or inactive."""
        cause = (Cause.EVENT, revocation.event_id) if revocation.event_id else (Cause.SETTINGS, SETTING)
        result = confirmed_read(self.engine, self.workos, kind, id, cause)
        after = result.after
        gone = after is None or after.deleted or after.content.get("status") == INACTIVE
        return gone and result.finding is not Finding.ANOMALY

    def _active_sessions(self, revocation: ClaimedRevocation) -> tuple[list[str], WorkOSError | None]:
        """Return the ids of the sessions to end, and an error if WorkOS listed others that cannot be ended.

        All pages are read first, because revoking may shift them.
        """
        found: list[object] = []
        after = None
        while True:
            try:
                page = self.workos.sessions_of(revocation.user_id, after)
            except NotFoundError:
                return [], None  # the user is gone, and with them all sessions
            found += page.items
            if (after := page.after) is None:
                break
        valid = [
            session
            for session in found
            if isinstance(session, dict) and session.get("user_id") == revocation.user_id
            if isinstance(session.get("id"), str)
        ]
        ids = [
            session["id"]
            for session in valid
            if session.get("status") not in ENDED
            if revocation.organization_id in (EVERYWHERE, session.get("organization_id"))
        ]
        invalid = WorkOSError("sessions: WorkOS listed a session without an id, or of another user")
        return ids, None if len(valid) == len(found) else invalid


def _claim_next(tx: Connection) -> ClaimedRevocation | None:
    """Claim a revocation that is due, so that no other worker does; drop those of people who have access again."""
    columns = (Revocation.__table__.c[name] for name in ClaimedRevocation._fields)
    due = select(*columns).where(*_due()).order_by(Revocation.due_at).limit(1).with_for_update(skip_locked=True)
    while row := tx.execute(due).one_or_none():
        revocation = ClaimedRevocation(*row)
        if not _drop_if_accessible(tx, revocation):
            claimed = revocation._replace(claim=revocation.claim + 1)
            tx.execute(_update_if_claimed(revocation).values(claim=claimed.claim, due_at=db_now_plus(CLAIM_SECONDS)))
            return claimed
    return None


def _count_if_still_lost(tx: Connection, revocation: ClaimedRevocation) -> bool:
    """Return whether the claim holds and the person has no access; then extend the claim and count a session.

    It is counted before it is revoked, so that it is in the audit even if the worker is killed or the answer is lost.
    """
    counted = {"due_at": db_now_plus(CLAIM_SECONDS), "sessions": Revocation.sessions + 1}
    return (
        not _drop_if_accessible(tx, revocation)
        and tx.execute(_update_if_claimed(revocation).values(counted)).rowcount > 0
    )


def _drop_if_accessible(tx: Connection, revocation: ClaimedRevocation) -> bool:
    if revocation.organization_id == EVERYWHERE:
        gone = select(User.id).where(User.id == revocation.user_id, User.deleted_by.is_not(None))
        accessible = tx.execute(gone).one_or_none() is None
    else:
        with Session(bind=tx) as session:
            accessible = role_of(session, revocation.user_id, revocation.organization_id) is not None
    if accessible:
        settle(tx, RevocationState.DROPPED, "the person has access again", *_still_claimed(revocation))
    return accessible


def _finish(tx: Connection, revocation: ClaimedRevocation) -> float | None:
    """Settle a revocation, unless the claim is lost; return the seconds since an event's time if sessions ended."""
    for row in settle(tx, RevocationState.DONE, None, *_still_claimed(revocation)):
        if row["sessions"] and row["event_id"]:
            seconds: float = (row["settled_at"] - row["since"]).total_seconds()
            return seconds
    return None


def _still_claimed(revocation: ClaimedRevocation) -> tuple[ColumnElement[bool], ...]:
    of_person = Revocation.organization_id == revocation.organization_id, Revocation.user_id == revocation.user_id
    return *of_person, PENDING, Revocation.claim == revocation.claim


def _update_if_claimed(revocation: ClaimedRevocation) -> Update:
    return update(Revocation).where(*_still_claimed(revocation))
