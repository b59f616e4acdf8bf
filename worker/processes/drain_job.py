"""The job of the lane `drain`: applies pending events and waits for more, because a job costs more than a small batch.

Of several jobs, one waits; the others help it with a backlog and end.
"""

import threading
import time

from redis.exceptions import RedisError

from models.tables import AutoJoinMode
from worker import provisioning
from worker.bootstrap import Services, drain_limits
from worker.inbox.drain import Drain
from worker.metrics import ACCEPTED_TO_APPLIED
from worker.repair import sessions

LIFE_SECONDS = 20.0
"""Lifetime of a waiting job, which then rings for the next one. Between two jobs, RQ cleans its registries."""
WAIT_SECONDS = 0.4
"""Maximum time until a waiting job notices that it must stop, or that another job is queued."""
MANY_EVENTS = 8
"""From this many events in one drain, replayed ones not counted, the next drain starts `GATHER_SECONDS` later."""
GATHER_SECONDS = 0.02
"""Makes the next batch larger: the statements of a batch cost as much as some dozens of events."""


class DrainJob:
    """Runs the jobs of the lane `drain` in one process. Call it once for each job.

    Args:
        services: the services of the process.
        stopping: set when the process must stop.
    """

    def __init__(self, services: Services, stopping: threading.Event) -> None:
        self._services = services
        self._bell = services.bell
        self._stopping = stopping
        self._new_applied = 0
        self.waits = False
        """Whether the running job is waiting for a ring."""
        limits = drain_limits(services.settings)
        self._drain = Drain(services.engine, limits, self._count, stopping.is_set, self._bell.enqueue_helper)

    def __call__(self) -> None:
        """Keep the doorbell's flag, so that rings reach this job, and drain after each ring.

        Drain again after clearing the flag or losing it to another job: events may have been stored since.
        """
        ends = time.monotonic() + LIFE_SECONDS
        keeps = False
        try:
            while keeps := self._bell.keep_flag():
                self._new_applied = 0
                if not self._drain_and_ring() or not self._wait(ends):
                    break
                if self._new_applied >= MANY_EVENTS:
                    self._stopping.wait(GATHER_SECONDS)
        except RedisError:
            keeps = False  # do not wait for Redis again; the flag expires by itself
            raise
        finally:
            if keeps:
                self._bell.clear_flag()
        if (not self._drain_and_ring() or keeps) and not self._bell.queued_jobs():
            self._bell.ring()  # the next job drains, and waits

    def _count(self, ages: list[float]) -> None:
        self._new_applied += len(ages)
        self._services.counters.observe(ACCEPTED_TO_APPLIED, ages)

    def _drain_and_ring(self) -> bool:
        """Drain, and ring the lanes that may have work because of it; return as `Drain`."""
        done = self._drain()
        settings = self._services.settings
        # Only for speed: the clock rings too.
        if settings.http_hooks:
            self._services.hooks_bell.ring()
        if settings.auto_join is AutoJoinMode.PROVISION and provisioning.waiting(self._services.engine):
            self._services.provision_bell.ring()
        if settings.revoke_sessions and sessions.waiting(self._services.engine):
            self._services.sessions_bell.ring()
        return done

    def _wait(self, until: float) -> bool:
        """Wait for a ring; return False if this job should end instead."""
        self.waits = True
        try:
            while not self._stopping.is_set() and time.monotonic() < until and not self._bell.queued_jobs():
                if self._bell.wait_for_ring(WAIT_SECONDS):
                    return True
            return False
        finally:
            self.waits = False
