"""Notifications: conditions that hold, and a service that Apprise calls."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from sqlalchemy import Engine, select, update

from models.database import in_transaction, write_transaction
from models.tables import Notice, NotifyTarget
from models.types import db_now_plus
from tests.support import JSON
from tests.support.receiver import Receiver, receiving
from worker.notify.plan import Active

REMIND = timedelta(hours=24)


def active(
    name: str = "failed_events", severity: str = "problem", subject: str = "", *, explained: bool = False
) -> Active:
    return Active(name, subject, severity, f"{name} holds", "do this", "/ops/", timedelta(seconds=60), explained)


class Service:
    """A service that Apprise posts JSON to (`json://`), at a URL that contains the secret `path`."""

    def __init__(self, receiver: Receiver, path: str) -> None:
        self.url = f"json://{receiver.place}/{path}"
        self.answers = receiver.answers
        self._receiver, self._path = receiver, f"/{path}"

    @property
    def took(self) -> list[JSON]:
        """The messages that it accepted at its URL."""
        return [json.loads(body) for path, body in self._receiver.accepted if path == self._path]


@contextmanager
def json_service(path: str = "secret-path") -> Iterator[Service]:
    """Run a service."""
    with receiving() as receiver:
        yield Service(receiver, path)


def later(engine: Engine, seconds: float) -> None:
    """Let `seconds` pass: everything that was recorded about notifications becomes older."""
    by = timedelta(seconds=seconds)
    with write_transaction(engine) as tx:
        for table, columns in ((Notice, ("since", "notified_at", "gone_since")), (NotifyTarget, ("due_at",))):
            key = list(table.__table__.primary_key)
            for row in tx.execute(select(table.__table__)).mappings().all():
                older = {name: row[name] - by for name in columns if row[name]}
                tx.execute(update(table).where(*(column == row[column.name] for column in key)).values(older))


def lose_leases(engine: Engine) -> None:
    """Let another process have taken over every target."""
    taken = update(NotifyTarget).values(fence=NotifyTarget.fence + 1, leased_until=db_now_plus(-1))
    in_transaction(engine, lambda tx: tx.execute(taken))
