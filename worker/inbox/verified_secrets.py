"""Records the webhook secrets that have verified a delivery.

Until a secret has, refused signatures probably mean that the secret is wrong. Afterwards they may come from anybody.
"""

import hashlib
from collections.abc import Iterable

from sqlalchemy import Connection, exists, select

from models.bulk import dialect_insert
from models.tables import Tick
from models.types import db_now

PREFIX = "secret:"


def note_verified(tx: Connection, secret: str) -> None:
    """Record that a secret has verified a delivery. Only a short hash is stored."""
    first = dialect_insert(tx, Tick).values(name=_tick(secret), at=db_now())
    tx.execute(first.on_conflict_do_nothing())


def any_verified(tx: Connection, secrets: Iterable[str]) -> bool:
    """Return whether one of the secrets has ever verified a delivery.

    Without secrets, as in a process that does not receive deliveries, return whether any secret has.
    """
    names = [_tick(secret) for secret in secrets]
    wanted = Tick.name.in_(names) if names else Tick.name.startswith(PREFIX)
    return bool(tx.execute(select(exists().where(wanted))).scalar_one())


def _tick(secret: str) -> str:
    # Of 32 bits, so that the hash does not identify the secret.
    return f"{PREFIX}{hashlib.sha256(secret.encode()).hexdigest()[:8]}"
