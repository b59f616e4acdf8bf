"""Operators' sessions on the pages. They are kept in the database, so that they can be ended."""

import hashlib
import secrets
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, Engine, delete, insert, or_, select, update

from models.database import read_transaction, transactional, write_transaction
from models.tables import Action, OperatorSession, Via
from models.types import db_ago, db_now
from worker import audit

LIFETIME = timedelta(hours=12)
"""A session ends this long after the sign-in, however active the operator is."""
IDLE = timedelta(hours=1)
"""A session ends this long after the operator was last active."""
SEEN_EVERY = timedelta(minutes=1)
"""Activity is written at most this often."""


@transactional
def sign_in(tx: Connection, who: str, address: str | None, entries: list[str] | None = None) -> str:
    """Start a session of the operator `who`, and return its secret id, to be kept in a cookie.

    `entries` are those of OPS_ALLOWED that apply to a person whom an identity provider knows; None: a token.
    """
    id = secrets.token_urlsafe(32)
    tx.execute(delete(OperatorSession).where(_ended()))
    tx.execute(insert(OperatorSession).values(id_hash=_hash(id), who=who, entries=entries))
    audit.note(tx, audit.Actor(who, Via.PAGE), Action.SIGN_IN, address=address)
    return id


class SignedIn(NamedTuple):
    """An operator who is signed in."""

    who: str
    entries: list[str] | None
    """Those given to `sign_in`."""
    at: datetime
    """The database's time, in UTC."""
    to_record: bool
    """Whether activity was last recorded more than `SEEN_EVERY` ago."""


def signed_in(engine: Engine, id: str) -> SignedIn | None:
    """Return the operator whose session has this id; None if there is none, or if it has ended."""
    found = select(OperatorSession.who, OperatorSession.entries, db_now(), OperatorSession.seen_at < db_ago(SEEN_EVERY))
    own = found.where(OperatorSession.id_hash == _hash(id), ~_ended())
    with read_transaction(engine) as tx:
        row = tx.execute(own).one_or_none()
        return SignedIn(*row) if row else None


def current_time(engine: Engine) -> datetime:
    """Return the database's time, in UTC."""
    with read_transaction(engine) as tx:
        return tx.execute(select(db_now())).scalar_one()


def record_activity(engine: Engine, id: str) -> None:
    """Record that the operator is active now."""
    own = update(OperatorSession).where(OperatorSession.id_hash == _hash(id), ~_ended())
    with write_transaction(engine) as tx:
        tx.execute(own.values(seen_at=db_now()))


@transactional
def sign_out(tx: Connection, id: str, who: str) -> None:
    """End the session with this id. Every copy of its cookie stops working at once."""
    if tx.execute(delete(OperatorSession).where(OperatorSession.id_hash == _hash(id))).rowcount:
        audit.note(tx, audit.Actor(who, Via.PAGE), Action.SIGN_OUT)


def _ended() -> ColumnElement[bool]:
    return or_(OperatorSession.created_at <= db_ago(LIFETIME), OperatorSession.seen_at <= db_ago(IDLE))


def _hash(id: str) -> str:
    return hashlib.sha256(id.encode()).hexdigest()
