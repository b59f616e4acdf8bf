"""Leases: one process at a time works on a row, and another takes over soon after that process has died.

The holder extends its lease with a heartbeat. Each new holder gets a higher fencing number, which is checked in every
transaction that writes. So a process that was frozen and wakes up later writes nothing.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Concatenate, ParamSpec, TypeVar

import structlog
from sqlalchemy import ColumnElement, Connection, Engine, null, select, true, update
from sqlalchemy.orm import InstrumentedAttribute

from models.database import in_transaction
from models.types import db_now, db_now_plus
from worker.errors import LeaseLostError, unexpected

P = ParamSpec("P")
R = TypeVar("R")

log = structlog.get_logger()

LEASE_SECONDS = 8.0
"""A dead process is replaced within 15 seconds: 8 until its lease expires, up to 5 until the clock wakes another."""
RENEWAL_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class LeasedTable:
    """The columns of a table whose rows can be leased: primary key, end of the lease, and fencing number."""

    key: InstrumentedAttribute[str]
    leased_until: InstrumentedAttribute[datetime | None]
    """By the database's clock; null if nobody holds the row."""
    fence: InstrumentedAttribute[int]
    open: ColumnElement[bool] = field(default_factory=true)
    """The condition that a row may be leased at all."""

    def is_free(self) -> ColumnElement[bool]:
        """Return the condition that a row may be leased and nobody holds it."""
        return self.open & (self.leased_until.is_(None) | (self.leased_until < db_now()))

    @contextmanager
    def lease(self, engine: Engine, key: str) -> Iterator["Lease | None"]:
        """Yield the lease of a row, extend it until the end of the block, and release it there.

        Yields None if another process holds it, or if the row does not exist or may not be leased.
        """
        lease = in_transaction(engine, self._take, key)
        if lease is None:
            yield None
            return
        ended = threading.Event()
        heartbeat = threading.Thread(target=lease.heartbeat, args=(engine, ended), daemon=True, name="lease")
        heartbeat.start()
        try:
            yield lease
        finally:
            ended.set()
            heartbeat.join()
            in_transaction(engine, lease.release)

    def _take(self, tx: Connection, key: str) -> "Lease | None":
        # Wait for transactions of the previous holder.
        tx.execute(select(self.key).where(self.key == key).with_for_update())
        taken = update(self.key.class_).where(self.key == key, self.is_free())
        values = {self.fence: self.fence + 1, self.leased_until: db_now_plus(LEASE_SECONDS)}
        fence = tx.execute(taken.values(values).returning(self.fence)).scalar_one_or_none()
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
        self._is_ours = (table.key == key) & (table.fence == fence)
        self._left_to_expire = False

    def check(self, tx: Connection) -> None:
        """Raise `LeaseLostError` unless the lease is still ours and the row open; keep it so until the end of `tx`."""
        # The weakest lock. It excludes a new holder but not the heartbeat, which a stronger lock would starve when many
        # transactions follow each other.
        row = select(self._table.key).where(self._is_ours, self._table.open).with_for_update(read=True, key_share=True)
        if tx.execute(row).one_or_none() is None:
            self.lost.set()
            raise LeaseLostError(self.key)

    def in_transaction(
        self, engine: Engine, step: Callable[Concatenate[Connection, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Run `step` like `models.database.in_transaction`, after `check` in the same transaction."""

        def checked(tx: Connection) -> R:
            self.check(tx)
            return step(tx, *args, **kwargs)

        return in_transaction(engine, checked)

    def leave_to_expire(self) -> None:
        """Do not release the lease at the end of the block, so that others wait until it expires."""
        self._left_to_expire = True

    def release(self, tx: Connection) -> None:
        """Let another process take the row at once, unless `leave_to_expire` was called."""
        if not self._left_to_expire:
            self._set(tx, null())

    def heartbeat(self, engine: Engine, ended: threading.Event) -> None:
        """Extend the lease until `ended` is set or the lease is lost."""
        while not ended.wait(RENEWAL_SECONDS):
            try:
                is_ours = in_transaction(engine, self._set, db_now_plus(LEASE_SECONDS))
            except Exception as error:  # noqa: BLE001 - without heartbeats the lease expires, as it should
                log.warning("lease_heartbeat_failed", key=self.key, error=unexpected(error))
                continue
            if not is_ours:
                self.lost.set()
                return

    def _set(self, tx: Connection, until: ColumnElement[datetime] | ColumnElement[None]) -> bool:
        """Set the end of the lease; return False if the lease is lost."""
        row = update(self._table.key.class_).where(self._is_ours)
        return tx.execute(row.values({self._table.leased_until: until})).rowcount == 1
