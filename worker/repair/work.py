"""The work of the lane `repair`: runs (resyncs, catch-ups, replays, retention), each under its lease, and due reads."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

import structlog
from redis.exceptions import RedisError
from sqlalchemy import Connection, Engine, select

from models.database import in_transaction, is_transient, read_transaction
from models.tables import MirrorState, Run, RunStatus, Task
from worker import error_reports, runs
from worker.errors import (
    BusyError,
    ConfigurationError,
    InvalidApiKeyError,
    LeaseLostError,
    WorkOSError,
    stack_of,
    unexpected,
)
from worker.leases import Lease
from worker.mirror import auto_join_policy
from worker.mirror.retention import Periods, retain
from worker.queue.doorbell import Doorbell
from worker.redis_client import INTERRUPTS
from worker.repair import reads
from worker.repair.catch_up import LAG, catch_up
from worker.repair.environment import bind
from worker.repair.new_types import add_ignored_types, read_new_types
from worker.repair.replay import replay
from worker.repair.resync.resync import Resync
from worker.repair.schedule import create_needed_resync, create_resync_unless_busy
from worker.settings import Settings
from worker.workos_api.client import WorkOSClient

log = structlog.get_logger()

READS_SECONDS = 10.0
"""How long a job makes confirmed reads before it looks for runs again."""


@dataclass(frozen=True, slots=True)
class Repair:
    """Works on runs and reads. Without a WorkOS client (no API key), only on retention and replays.

    `bell` wakes the drain, after a catch-up and during a replay. `stopping` returns whether to stop early.
    """

    engine: Engine
    workos: WorkOSClient | None
    settings: Settings
    bell: Doorbell
    stopping: Callable[[], bool] = lambda: False

    def work_on_all(self) -> None:
        """Work on every run that no worker holds, then make due reads for at most `READS_SECONDS`.

        The clock rings again for what remains, so that reads never keep a run waiting.

        Raises:
            ConfigurationError: the settings name another environment.
            InvalidApiKeyError: WorkOS refuses the API key.
            WorkOSError: WorkOS does not answer.
        """
        self._each(Task.RETENTION, Task.REPLAY)  # first: they do not need WorkOS
        if self.workos is None:
            return
        bind(self.engine, self.workos, self.settings)
        in_transaction(self.engine, create_needed_resync)
        self._each()
        until = time.monotonic() + READS_SECONDS
        reads.work_due(self.engine, self.workos, lambda: self.stopping() or time.monotonic() >= until)

    def _each(self, *tasks: Task) -> None:
        for run_id in runs.unheld_runs(self.engine, *tasks):
            if not self.stopping():
                self.work_on(run_id)

    def work_on(self, run_id: str) -> bool:
        """Work on a run; return whether it has ended. False: another worker holds it, or it resumes later.

        An unexpected error ends the run as failed: it would fail again, and other runs wait.

        Raises:
            ConfigurationError, WorkOSError, redis.exceptions.RedisError, sqlalchemy.exc.DBAPIError: the run
                resumes once the cause is gone.
        """
        with runs.lease(self.engine, run_id) as lease:
            if lease is None:
                return False
            try:
                return self._work(lease)
            except LeaseLostError:
                log.warning("lease_lost", run=run_id)
                return False
            except (ConfigurationError, WorkOSError, RedisError, *INTERRUPTS):
                raise
            except Exception as error:
                if is_transient(error):
                    raise  # the database is unavailable
                problem = unexpected(error)
                log.warning("run_failed", run=run_id, error=problem, stack=stack_of(error))
                error_reports.capture(error, run=run_id)
                return self._end(lease, problem)

    def _work(self, lease: Lease) -> bool:
        with read_transaction(self.engine) as tx:
            task = tx.execute(select(Run.task).where(Run.id == lease.key)).scalar_one()
        if task == Task.RETENTION:
            return self._retain(lease)
        if task == Task.REPLAY:
            return replay(self.engine, lease, self.bell, self.settings.replay_per_second, self.stopping)
        if self.workos is None:
            return False
        return self._catch_up(lease, self.workos) if task == Task.CATCH_UP else self._resync(lease, self.workos)

    def _retain(self, lease: Lease) -> bool:
        def should_stop() -> bool:
            return self.stopping() or lease.lost.is_set()

        periods = Periods(
            payloads=timedelta(days=self.settings.keep_payloads_days),
            events=timedelta(days=self.settings.keep_events_days),
            changes=timedelta(days=self.settings.keep_changes_days),
            persons=timedelta(days=self.settings.erase_after_days),
        )
        in_transaction(self.engine, add_ignored_types)
        retain(self.engine, periods, should_stop)
        return not should_stop() and self._end(lease)

    def _catch_up(self, lease: Lease, workos: WorkOSClient) -> bool:
        problem = None
        try:
            try:
                catch_up_or_resync(self.engine, workos, lease, timedelta(seconds=self.settings.catch_up_lag_seconds))
            finally:  # also if WorkOS refuses a type
                read_new_types(self.engine, workos, lease)
        except (WorkOSError, InvalidApiKeyError) as error:
            problem = str(error)
            log.warning("catch_up_failed", run=lease.key, error=problem)
        finally:
            self.bell.ring()
        return self._end(lease, problem)

    def _resync(self, lease: Lease, workos: WorkOSClient) -> bool:
        ended = Resync(self.engine, workos, lease, self.stopping).work()
        if ended:
            auto_join_policy.refresh_counts(self.engine)
            in_transaction(self.engine, _catch_up_if_first)
        return ended

    def _end(self, lease: Lease, problem: str | None = None) -> bool:
        """Record the end of a run, as failed if there is a problem; return True."""
        in_transaction(self.engine, runs.finish, lease, RunStatus.FAILED if problem else RunStatus.DONE, problem)
        return True


def catch_up_or_resync(engine: Engine, workos: WorkOSClient, lease: Lease | None = None, lag: timedelta = LAG) -> None:
    """Catch up, and start a resync if the events API no longer has all events since the last time.

    Arguments and errors are those of `worker.repair.catch_up.catch_up`.
    """
    if catch_up(engine, workos, lease, lag).missed:
        in_transaction(engine, create_resync_unless_busy, "missed events")


def _catch_up_if_first(tx: Connection) -> None:
    backfilling = select(MirrorState.id).where(
        MirrorState.backfilled_at.is_(None), MirrorState.last_resync_at.is_not(None)
    )
    if tx.execute(backfilling).one_or_none() is not None:
        with suppress(BusyError):
            runs.create(tx, Task.CATCH_UP, "first start")
