"""Runs a resync in three phases: apply WorkOS's listings, choose deletions, and make the confirmed reads.

A crash in any phase loses nothing: each page is committed together with its listing's cursor, and a read is removed
from the table `reads` in the transaction that writes the object.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any, Concatenate, ParamSpec, TypedDict, TypeVar, Unpack

import structlog
from redis.exceptions import RedisError
from sqlalchemy import ColumnElement, Connection, Engine, delete, exists, select, update

from models.database import delete_some, in_transaction, is_transient, read_transaction, transactional
from models.outcomes import Finding
from models.tables import Action, Drift, DriftAction, Listing, MirrorState, Phase, Read, Run, RunStatus, Seen, Task
from models.types import db_now
from worker import audit, traces
from worker.errors import (
    BadRequestError,
    InvalidApiKeyError,
    LeaseLostError,
    ListingFailedError,
    NotFoundError,
    PayloadError,
    RateLimitedError,
    WorkOSError,
    unexpected,
)
from worker.group_commit import GroupCommit
from worker.kinds import KINDS, LISTINGS, Kind
from worker.kinds.kind import Frequency
from worker.kinds.organization import ORGANIZATION
from worker.leases import Lease
from worker.mirror import uncertainty
from worker.mirror.read_requests import request_reads
from worker.repair.reads import Result, confirmed_read
from worker.repair.resync import deletions, drift, listings
from worker.repair.resync.apply_page import CAUSE, ListedPage, apply_pages
from worker.repair.resync.coverage import compared, given_up
from worker.repair.resync.listings import Key, Open
from worker.runs import RUNS, create, finish
from worker.workos_api.client import WorkOSClient

log = structlog.get_logger()

CONCURRENT_CALLS = 10
"""Enough to use the documented limits at a latency of 50 ms. With more, the listing of users, whose
pages must be fetched one after another, would wait longer for each token of the rate limits."""
MAX_UNCOMMITTED = 50
"""Listings whose last page is fetched and not committed yet. Their pages are committed together, many at once."""
PREFETCH = 200
"""Listings or reads fetched from the database in advance."""
MAX_ITEMS_PER_COMMIT = 500
"""Upper bound on the items written in one transaction, so that no other writer waits long."""
MAX_TRIES = 3
"""Failures of one listing or read, while WorkOS answers other calls, after which it is reported and skipped."""
ROWS_PER_DELETE = 5_000
KNOWN_ORGANIZATIONS = 5
"""Organizations recorded in the mirror, to recognize the environment of an API key."""

P = ParamSpec("P")
T = TypeVar("T")


class ResyncOptions(TypedDict, total=False):
    """Options of a resync. By default, it compares and repairs everything."""

    organization_id: str | None
    """Compare only this workspace."""
    dry_run: bool
    """Only report differences."""
    approves: str | None
    """Only carry out the deletions that the run with this id withheld."""


@transactional
def start(tx: Connection, actor: audit.Actor, **options: Unpack[ResyncOptions]) -> str:
    """Create a resync for `actor` and return its id. If one of the same extent is unfinished, it is resumed instead.

    Raises:
        BusyError: another resync is running.
        ConfigurationError: `approves` is given, and `actor` gives no reason.
        UnknownIdError: the run `approves` does not exist.
        OperatorError: the run `approves` withheld nothing.
    """
    same = {"organization_id": None, "dry_run": False, "approves": None} | options
    unfinished = select(Run.id).where(Run.task == Task.RESYNC, RUNS.is_free()).filter_by(**same)
    resumed = tx.execute(unfinished).scalars().first()
    run_id = resumed or create_resync(tx, actor.who, actor.reason, **options)
    audit.note(
        tx,
        actor,
        Action.RESYNC if same["approves"] is None else Action.APPROVE_DELETIONS,
        kind="run",
        object_id=run_id,
        organization_id=options.get("organization_id"),
        dry_run=options.get("dry_run") or None,
        approves=options.get("approves"),
        resumed=True if resumed else None,
    )
    return run_id


def create_resync(
    tx: Connection, requested_by: str, reason: str | None = None, **options: Unpack[ResyncOptions]
) -> str:
    """Create a resync with its first listings or reads, and return its id; errors are those of `start`."""
    approves, organization_id = options.get("approves"), options.get("organization_id")
    phase = Phase.LIST if approves is None else Phase.CONFIRM
    run_id = create(tx, Task.RESYNC, requested_by, phase=phase, reason=reason, **options)
    if approves is not None:
        deletions.approve(tx, run_id, approves)
        return run_id
    for name, (_, listing) in LISTINGS.items():
        if organization_id is not None:
            if listing.workspace_resync:
                listings.add(tx, run_id, name, [organization_id])
        elif listing.full_resync is Frequency.ONCE:
            listings.add(tx, run_id, name, [""])
    return run_id


class Resync:
    """One worker's work on a run, under its lease. `stopping` returns whether to stop between two calls."""

    def __init__(
        self, engine: Engine, workos: WorkOSClient, lease: Lease, stopping: Callable[[], bool] = lambda: False
    ) -> None:
        self._engine = engine
        self._workos = workos
        self._lease = lease
        self._run_id = lease.key
        self._stopping = stopping
        self._failed = threading.Event()
        self._calls_before = workos.calls
        with read_transaction(engine) as tx:
            self._run = tx.execute(select(Run.__table__).where(Run.id == lease.key)).one()

    def work(self) -> bool:
        """Work on the run until it ends; return False if it stopped before, so that a worker must resume it.

        Raises:
            LeaseLostError: another worker took over the run.
            InvalidApiKeyError: WorkOS refuses the API key; the run has failed.
        """
        read_all = partial(self._in_parallel, self._requested_reads, self._read_one)
        steps: dict[str, tuple[Callable[[], bool], Phase]] = {
            Phase.LIST: (self._list_all, Phase.CHOOSE),
            Phase.CHOOSE: (self._choose_deletions, Phase.CONFIRM),
            Phase.CONFIRM: (read_all, Phase.OVER),
        }
        phase = self._run.phase
        try:
            while phase != Phase.OVER:
                step, following = steps[phase]
                if not step():
                    self._write(self._update_run, error=None)
                    return False
                self._write(self._update_run, phase=following)
                phase = following
            self._write(self._succeed)
        except WorkOSError as error:
            log.warning("resync_interrupted", run=self._run_id, error=str(error))
            self._write(self._update_run, error=str(error))
            return False
        except (InvalidApiKeyError, ListingFailedError) as error:
            log.warning("resync_failed", run=self._run_id, error=str(error))
            self._write(self._fail, str(error))
            if isinstance(error, InvalidApiKeyError):
                self._clear()
                raise
        self._clear()
        return True

    # Phase 1: list

    def _list_all(self) -> bool:
        """Apply every listing. The roles of organizations come last: only then is it known which have their own."""
        with closing(GroupCommit(self._apply_pages, MAX_ITEMS_PER_COMMIT)) as commit:
            list_one = partial(self._list_one, commit)
            open_listings = partial(listings.open_listings, self._engine, self._run_id)
            if not self._in_parallel(open_listings, list_one):
                return False
            if self._run.organization_id is None:
                self._write(listings.add_role_listings, self._run_id)
            return self._in_parallel(open_listings, list_one)

    def _list_one(self, commit: GroupCommit[ListedPage], listing: Open) -> Future[None] | None:
        """Fetch a listing from its cursor to the last page. Return the future of the last commit; None if it failed."""
        key, after = listing.key, listing.after
        committed: Future[None] | None = None
        while not self._should_stop():
            try:
                with traces.span("resync.page", kind=key.name) as span:
                    page = key.fetch(self._workos, after)
                    span.note(items=len(page.items))
            except (WorkOSError, InvalidApiKeyError) as error:
                if isinstance(error, BadRequestError) and after is not None and after == listing.after:
                    log.warning("cursor_lost", run=self._run_id, listing=key.name)
                    return self._list_one(commit, replace(listing, after=None))
                if committed is not None:
                    committed.result()  # or it would reopen the listing
                self._listing_failed(key, error)
                return None
            if committed is not None:
                committed.result()
            committed = commit.submit((listing, page), len(page.items))
            after = page.after
            if after is None:
                break
        return committed

    def _apply_pages(self, pages: Sequence[ListedPage]) -> None:
        self._write(apply_pages, self._run_id, pages, dry_run=self._run.dry_run)

    def _listing_failed(self, key: Key, error: WorkOSError | InvalidApiKeyError) -> None:
        if isinstance(error, InvalidApiKeyError) and LISTINGS[key.name][1].required:
            raise error
        if key.parent and isinstance(error, NotFoundError):
            self._write(request_reads, ORGANIZATION, [key.parent], "its listing answered 404", self._run_id)
            self._write(listings.give_up, self._run_id, key)
        else:
            self._raise_if_workos_is_down(error)
            self._write(self._count_listing_failure, key, str(error))

    def _count_listing_failure(self, tx: Connection, key: Key, problem: str) -> None:
        """Retry a listing later; after the last try, skip it, or fail if the resync needs it."""
        name, parent = key
        kind, listing = LISTINGS[name]
        log.warning("listing_failed", run=self._run_id, listing=name, parent=parent, error=problem)
        if listings.record_failure(tx, self._run_id, key) < MAX_TRIES:
            return
        if not parent and listing.required:
            raise ListingFailedError(problem)
        listings.give_up(tx, self._run_id, key)
        owner = (ORGANIZATION, parent) if parent else (kind, "all of them")
        drift.add_problem(tx, self._run_id, *owner, f"its {name}: {problem}")

    # Phase 2: choose

    def _choose_deletions(self) -> bool:
        self._write(deletions.update_statistics)
        self._write(deletions.request_reads_or_withhold, self._run_id)
        self._write(deletions.request_reads_of_unknown_users, self._run_id, self._run.organization_id)
        return True

    # Phase 3: confirm

    def _requested_reads(self, limit: int) -> list[tuple[Kind, str]]:
        requests = select(Read.kind, Read.object_id).where(Read.run_id == self._run_id, Read.kind.in_(KINDS))
        with read_transaction(self._engine) as tx:
            # Reads that have failed come last.
            return [(KINDS[kind], id) for kind, id in tx.execute(requests.order_by(Read.attempts).limit(limit))]

    def _read_one(self, request: tuple[Kind, str]) -> None:
        kind, id = request
        cause, dry_run = (CAUSE, self._run_id), self._run.dry_run

        def report(tx: Connection, result: Result) -> None:
            self._lease.check(tx)
            tx.execute(delete(Read).where(self._request(kind, id)))
            if result.finding is not Finding.EQUAL:
                only_reported = result.finding is Finding.ANOMALY or dry_run
                there = result.after if result.finding is not Finding.EXTRA else None
                action = DriftAction.REPORTED if only_reported else DriftAction.REPAIRED
                row = drift.difference(kind, id, result.finding, result.before, there, action)
                drift.record(tx, self._run_id, [row])

        try:
            confirmed_read(self._engine, self._workos, kind, id, cause, report, dry_run=dry_run)
        except PayloadError as error:
            self._write(self._read_failed, kind, id, error.field, retry=False)
        except WorkOSError as error:
            self._raise_if_workos_is_down(error)
            self._write(self._read_failed, kind, id, str(error))
        except (LeaseLostError, InvalidApiKeyError, RedisError):
            raise
        except Exception as error:
            if is_transient(error):
                raise  # the database is unavailable; the object is not the cause
            self._write(self._read_failed, kind, id, unexpected(error))

    def _read_failed(self, tx: Connection, kind: Kind, id: str, problem: str, *, retry: bool = True) -> None:
        """Retry a read later; skip it after the last try, or if a retry cannot help."""
        log.warning("read_failed", run=self._run_id, kind=kind.name, id=id, error=problem)
        failed = update(Read).where(self._request(kind, id)).values(attempts=Read.attempts + 1)
        attempts = tx.execute(failed.returning(Read.attempts)).scalar_one()
        if attempts >= MAX_TRIES or not retry:
            tx.execute(delete(Read).where(self._request(kind, id)))
            drift.record(tx, self._run_id, [drift.invalid(kind, id, problem)])

    def _request(self, kind: Kind, id: str) -> ColumnElement[bool]:
        return (Read.run_id == self._run_id) & (Read.kind == kind.name) & (Read.object_id == id)

    # All phases

    def _write(self, step: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        return self._lease.in_transaction(self._engine, step, *args, **kwargs)

    def _should_stop(self) -> bool:
        return self._stopping() or self._lease.lost.is_set() or self._failed.is_set()

    def _in_parallel(self, source: Callable[[int], list[T]], work: Callable[[T], Future[None] | None]) -> bool:
        """Call `work` with each item of `source`, in several threads; return False if it stopped before the end.

        An item is finished when the future that `work` returned is done; without one, when `work` returned.
        `source(limit)` returns up to `limit` unfinished items. It keeps returning an item until it is finished, so
        items in progress are skipped here. An error of `work` or of its future stops the other threads and is raised.
        """
        calls: dict[Future[Any], T] = {}  # each results in a future of `commits` or in None
        commits: dict[Future[Any], T] = {}
        waiting: deque[T] = deque()
        with ThreadPoolExecutor(CONCURRENT_CALLS, "resync") as pool:
            while not self._should_stop():
                if not waiting:
                    working = [*calls.values(), *commits.values()]
                    waiting.extend(item for item in source(PREFETCH + len(working)) if item not in working)
                while waiting and len(calls) < CONCURRENT_CALLS and len(commits) < MAX_UNCOMMITTED:
                    item = waiting.popleft()
                    calls[pool.submit(work, item)] = item
                if not calls and not commits:
                    return True
                for future in wait([*calls, *commits], return_when=FIRST_COMPLETED).done:
                    if future.exception() is not None:
                        self._failed.set()
                    if (commit := future.result()) is not None:
                        commits[commit] = calls[future]
                    calls.pop(future, None)
                    commits.pop(future, None)
        if self._lease.lost.is_set():
            raise LeaseLostError(self._run_id)
        return False

    def _raise_if_workos_is_down(self, error: WorkOSError | InvalidApiKeyError) -> None:
        """Return if WorkOS answers another call, so that only the object or listing of `error` is retried.

        Raise if it does not, or if a rate limit is used up. Then the whole run waits.
        """
        if isinstance(error, RateLimitedError):
            raise error
        self._workos.now()

    def _update_run(self, tx: Connection, /, **values: str | None) -> None:
        calls = self._run.calls + self._workos.calls - self._calls_before
        tx.execute(update(Run).where(Run.id == self._run_id).values(calls=calls, **values))

    def _succeed(self, tx: Connection) -> None:
        if self._run.organization_id is None and not self._run.dry_run and self._run.approves is None:
            self._record_full_resync(tx)
        skipped, total = given_up(tx, self._run_id, MAX_TRIES)
        if skipped:
            self._record_progress(tx, total - skipped, total)
        elif not self._run.dry_run and self._run.approves is None:
            uncertainty.clear_after_resync(tx, self._run_id)
            if self._run.organization_id is None:
                self._record_verified(tx)
        self._finish(tx, RunStatus.DONE, None)

    def _record_full_resync(self, tx: Connection) -> None:
        seen = (Seen.run_id == self._run_id, Seen.kind == ORGANIZATION.name)
        known = list(tx.execute(select(Seen.object_id).where(*seen).limit(KNOWN_ORGANIZATIONS)).scalars())
        before = tx.execute(select(MirrorState.listed_kinds).with_for_update()).scalar_one() or []
        listed = sorted({*before, *listings.listed_kinds(tx, self._run_id)})
        tx.execute(update(MirrorState).values(last_resync_at=db_now(), listed_kinds=listed))
        if known:  # an empty listing does not replace known organizations
            tx.execute(update(MirrorState).values(known_organizations=known))

    def _record_verified(self, tx: Connection) -> None:
        """Record that WorkOS had what the mirror has, unless a difference was not repaired."""
        left = exists().where(Drift.run_id == self._run_id, Drift.action != DriftAction.REPAIRED)
        began = select(Run.workos_from).where(Run.id == self._run_id).scalar_subquery()
        verified = {"verified_at": began, "verified_rows_to": self._run.created_at}
        tx.execute(update(MirrorState).where(~left).values(verified))

    def _fail(self, tx: Connection, error: str) -> None:
        """End the run as failed, and record its progress first: its listings are deleted next."""
        self._record_progress(tx, *compared(tx, self._run_id))
        self._finish(tx, RunStatus.FAILED, error)

    def _record_progress(self, tx: Connection, done: int, total: int | None) -> None:
        tx.execute(update(Run).where(Run.id == self._run_id).values(done=done, total=total))

    def _finish(self, tx: Connection, status: RunStatus, error: str | None) -> None:
        self._update_run(tx)
        finish(tx, self._lease, status, error)

    def _clear(self) -> None:
        """Delete the run's rows of progress, in small steps. After a crash, retention deletes them."""
        for table in (Seen, Listing, Read):
            while in_transaction(self._engine, delete_some, table, table.run_id == self._run_id, limit=ROWS_PER_DELETE):
                pass
