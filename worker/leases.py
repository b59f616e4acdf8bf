"""Leases: one process at a time works on a row, and another takes over soon after that process has died.

The holder of a lease extends it with a heartbeat. Each new holder gets a higher fencing number, which is checked in
every transaction that writes: a process that was frozen and wakes up later writes nothing.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime

import structlog
from sqlalchemy import ColumnElement, Connection, Engine, Update, select, true, update
from sqlalchemy.orm import InstrumentedAttribute

from models.database import in_transaction
from models.types import db_now, db_now_plus
from worker.errors import LeaseLostError

log = structlog.get_logger()

LEASE_SECONDS = 8.0
"""Together with the clock's period, which then rings, this stays below 15 seconds."""
HEARTBEAT_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class LeasedTable:
    """The columns of a table whose rows can be leased.

    Args:
        key: the primary key.
        leased_until: until when the row is leased, by the database's clock; null if nobody holds it.
        fence: the fencing number, raised by each new holder.
        open: which rows can be leased at all.
    """

    key: InstrumentedAttribute[str]
    leased_until: InstrumentedAttribute[datetime | None]
    fence: InstrumentedAttribute[int]
    open: ColumnElement[bool] = field(default_factory=true)

    def is_free(self) -> ColumnElement[bool]:
        """Return the condition that a row can be leased and nobody holds it."""
        return self.open & (self.leased_until.is_(None) | (self.leased_until < db_now()))

    @contextmanager
    def lease(self, engine: Engine, key: str) -> Iterator["Lease | None"]:
        """Yield the lease of a row and extend it until the end of the block, which releases it.

        Yields None if another process holds it, or if there is no such row.
        """
        lease = in_transaction(engine, self._take, key)
        if lease is None:
            yield None
            return
        ended = threading.Event()
        heartbeat = threading.Thread(target=lease.keep, args=(engine, ended), daemon=True, name="lease")
        heartbeat.start()
        try:
            yield lease
        finally:
            ended.set()
            heartbeat.join()
            in_transaction(engine, lease.release)

    def _take(self, tx: Connection, key: str) -> "Lease | None":
        # Waits for transactions that are being written under the older number.
        tx.execute(select(self.key).where(self.key == key).with_for_update())
        taken = (
            update(self.key.class_)
            .where(self.key == key, self.is_free())
            .values({self.fence: self.fence + 1, self.leased_until: db_now_plus(LEASE_SECONDS)})
        )
        fence = tx.execute(taken.returning(self.fence)).scalar_one_or_none()
        return None if fence is None else Lease(self, key, fence)


class Lease:
    """The right to work on a row until another process takes it over.

    Attributes:
        key: the row's primary key.
        lost: set once the heartbeat or `check` has found that the lease is lost.
    """

    def __init__(self, table: LeasedTable, key: str, fence: int) -> None:
        self.key = key
        self.lost = threading.Event()
        self._table = table
        self._held = (table.key == key) & (table.fence == fence)
        self._kept = False

    @property
    def run_id(self) -> str:
        """The key, where the row is a run."""
        return self.key

    def check(self, tx: Connection) -> None:
        """Hold the row to the end of `tx`; raises `LeaseLostError` if the lease is lost or the row is closed."""
        # The weakest lock: it keeps a new holder out but not the heartbeat, which a stronger one would starve while
        # many transactions follow each other.
        row = select(self._table.key).where(self._held, self._table.open).with_for_update(read=True, key_share=True)
        if tx.execute(row).one_or_none() is None:
            self.lost.set()
            raise LeaseLostError(self.key)

    def leave_to_expire(self) -> None:
        """Do not release the lease at the end of the block: others wait until it expires."""
        self._kept = True

    def release(self, tx: Connection) -> None:
        """Let another process take the row at once, unless `leave_to_expire` was called."""
        if not self._kept:
            tx.execute(self._set(None))

    def keep(self, engine: Engine, ended: threading.Event) -> None:
        """Extend the lease until `ended` is set or the lease is lost."""
        while not ended.wait(HEARTBEAT_SECONDS):
            try:
                held = in_transaction(engine, self._extend)
            except Exception as error:  # noqa: BLE001 - the lease then expires by itself, which is what should happen
                log.warning("heartbeat_failed", key=self.key, error=type(error).__name__)
                continue
            if not held:
                self.lost.set()
                return

    def _extend(self, tx: Connection) -> bool:
        return tx.execute(self._set(db_now_plus(LEASE_SECONDS))).rowcount == 1

    def _set(self, until: ColumnElement[datetime] | None) -> Update:
        table = self._table
        return update(table.key.class_).where(self._held).values({table.leased_until: until})
