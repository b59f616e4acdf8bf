"""Full resync: list what WorkOS has, repair what differs, delete only what a read by id says is gone.

Three phases, each resumable: `list` pages into the mirror, `delete` chooses what was not listed, `read` settles every
doubt with a confirmed read. What a page says and how far its listing got are committed in one transaction, under the
run's fencing number: a crash repeats one page for each call in flight, and a frozen worker that wakes writes nothing.
"""

import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from typing import Concatenate, ParamSpec, TypeVar

import structlog
from redis.exceptions import RedisError
from sqlalchemy import Connection, Engine, delete, select, update

from models.database import delete_some, in_transaction, is_transient, read_transaction
from models.outcomes import Finding
from models.tables import DriftAction, Listing, Mirror, Phase, Read, Run, RunStatus, Seen, Task
from models.types import db_now
from worker.errors import (
    BadRequestError,
    InvalidApiKeyError,
    LeaseLostError,
    ListingFailedError,
    NotFoundError,
    PayloadError,
    RateLimitedError,
    WorkOSUnavailableError,
    unexpected,
)
from worker.group_commit import GroupCommit
from worker.kinds import KINDS, LISTINGS, Kind
from worker.kinds.kind import Scope
from worker.kinds.organization import ORGANIZATION
from worker.kinds.user import USER
from worker.leases import Lease
from worker.mirror.apply import stored_rows
from worker.mirror.read_requests import request_reads
from worker.repair.reads import Result, confirmed_read
from worker.repair.resync import deletions, drift, listings
from worker.repair.resync.apply_page import CAUSE, ListedPage, apply_pages
from worker.repair.resync.listings import Key, Open
from worker.repair.resync.parallel import in_parallel
from worker.runs import create, finish, unfinished_run
from worker.workos_api.client import WorkOSClient

log = structlog.get_logger()

AT_ONCE = 10
"""Calls in flight: enough for the documented limits at 50 ms of latency, and so few that the listing of users, which
goes page by page, does not wait long behind the others for its next token."""
MAX_ITEMS_PER_COMMIT = 500
"""Items of the pages written in one transaction, so that no one waits long for it."""
MAX_TRIES = 3
"""What cannot be read so often, while WorkOS answers otherwise, is reported and no longer holds the run up."""
STEP = 5_000
"""Rows deleted in one transaction."""
SOME = 5
"""Organizations remembered, to know this environment's key by."""

P = ParamSpec("P")
T = TypeVar("T")


def start(
    engine: Engine,
    requested_by: str,
    *,
    organization_id: str | None = None,
    dry_run: bool = False,
    approves: str | None = None,
) -> str:
    """Create a resync and return its id; one of the same scope that was left unfinished is gone on with instead.

    Args:
        engine: the database.
        requested_by: who asked: an operator's name, or the clock.
        organization_id: only this workspace.
        dry_run: only report.
        approves: the run whose withheld deletions are to be carried out, and nothing else.

    Raises:
        BusyError: another resync is in progress.
        UnknownIdError: there is no such run.
        OperatorError: it withheld nothing.
    """
    scope = {"organization_id": organization_id, "dry_run": dry_run, "approves": approves}

    def made(tx: Connection) -> str:
        return unfinished_run(tx, Task.RESYNC, **scope) or begin(
            tx, requested_by, organization_id, dry_run=dry_run, approves=approves
        )

    return in_transaction(engine, made)


def begin(
    tx: Connection,
    requested_by: str,
    organization_id: str | None = None,
    *,
    dry_run: bool = False,
    approves: str | None = None,
) -> str:
    """Create a resync in `tx`; as `start`."""
    scope = {"organization_id": organization_id, "dry_run": dry_run, "approves": approves}
    run_id = create(tx, Task.RESYNC, requested_by, **scope, phase=Phase.LIST if approves is None else Phase.READ)
    if approves is not None:
        deletions.approve(tx, run_id, approves)
    elif organization_id is not None:
        for name, (_, listing) in LISTINGS.items():
            if listing.workspace_resync:
                listings.add(tx, run_id, name, [organization_id])
    else:
        for name in listings.named(Scope.ONCE):
            listings.add(tx, run_id, name, [""])
    return run_id


class Resync:
    """One worker's work on one run.

    Args:
        engine: the database.
        workos: WorkOS.
        held: the lease of the run.
        stopping: says whether to leave off between two pages.
    """

    def __init__(
        self, engine: Engine, workos: WorkOSClient, held: Lease, stopping: Callable[[], bool] = lambda: False
    ) -> None:
        self._engine = engine
        self._workos = workos
        self._held = held
        self._stopping = stopping
        self._broken = threading.Event()
        self._calls_before = workos.calls.total
        with read_transaction(engine) as tx:
            self._run = tx.execute(select(Run.__table__).where(Run.id == held.run_id)).one()

    def work(self) -> bool:
        """Go on with the run until it is over; False if it was left off for another worker.

        Raises:
            LeaseLostError: another worker has it now.
            InvalidApiKeyError: WorkOS refuses the key; the run is noted as failed.
        """
        try:
            phases = {Phase.LIST: self._list_all, Phase.DELETE: self._choose_deletions, Phase.READ: self._read_all}
            while (phase := self._phase()) != Phase.OVER:
                if not phases[phase]():
                    self._write(self._leave, None)
                    return False
            self._write(self._finish_well)
        except InvalidApiKeyError as error:
            message = str(error)
            self._write(self._finish, RunStatus.FAILED, message)
            self._clear()
            raise
        except ListingFailedError as error:
            message = str(error)
            log.warning("resync_failed", run=self._held.run_id, error=message)
            self._write(self._finish, RunStatus.FAILED, message)
        except WorkOSUnavailableError as error:
            # Left as it is: the lease ends, and the next worker goes on from here.
            message = str(error)
            log.warning("resync_interrupted", run=self._held.run_id, error=message)
            self._write(self._leave, message)
            return False
        self._clear()
        return True

    def _clear(self) -> None:
        """Drop what only the run needed; in small steps, for the door. What is left by a crash falls to retention."""
        for table in (Seen, Listing, Read):
            mine = table.run_id == self._held.run_id
            while self._write(delete_some, table, mine, most=STEP):
                pass

    def _leave(self, tx: Connection, error: str | None) -> None:
        self._held.check(tx)
        calls = Run.calls + self._workos.calls.total - self._calls_before
        tx.execute(update(Run).where(Run.id == self._held.run_id).values(error=error, calls=calls))

    def _phase(self) -> Phase:
        with read_transaction(self._engine) as tx:
            return tx.execute(select(Run.phase).where(Run.id == self._held.run_id)).scalar_one()

    def _move_on(self, tx: Connection, phase: Phase) -> None:
        self._held.check(tx)
        tx.execute(update(Run).where(Run.id == self._held.run_id).values(phase=phase))

    # list

    def _list_all(self) -> bool:
        """List everything; then, where organization roles are in use, those too."""
        with closing(GroupCommit(self._take_together, MAX_ITEMS_PER_COMMIT)) as group:
            list_one = partial(self._list_one, group)
            if not self._in_parallel(self._open_listings, list_one):
                return False
            self._write(self._open_role_listings)
            if not self._in_parallel(self._open_listings, list_one):
                return False
        self._write(self._move_on, Phase.DELETE)
        return True

    def _open_listings(self, limit: int) -> list[Open]:
        with read_transaction(self._engine) as tx:
            return listings.open_listings(tx, self._held.run_id, limit)

    def _list_one(self, group: GroupCommit[ListedPage, None], listing: Open) -> None:
        key, after = listing.key, listing.after
        resumed = more = True
        while more and not self._leaving():
            try:
                page = key.fetch(self._workos, after)
            except InvalidApiKeyError as error:
                if LISTINGS[key.name][1].required:
                    raise
                self._not_listed(key, WorkOSUnavailableError(str(error)))
                return
            except WorkOSUnavailableError as error:
                if isinstance(error, BadRequestError) and resumed and after is not None:
                    log.warning("cursor_lost", run=self._held.run_id, listing=key.name)
                    after, resumed = None, False
                    continue
                self._not_listed(key, error)
                return
            group(ListedPage(key, page, listing.began), len(page.items))
            after, resumed, more = page.after, False, page.after is not None

    def _not_listed(self, key: Key, error: WorkOSUnavailableError) -> None:
        if key.parent and isinstance(error, NotFoundError):
            self._write(self._parent_is_gone, key)
            return
        self._require_there(error)
        self._write(self._listing_failed, key, str(error))

    def _require_there(self, error: WorkOSUnavailableError) -> None:
        """Raise if not only one thing cannot be read: with WorkOS away, or a rate limit used up, the run waits."""
        if isinstance(error, RateLimitedError):
            raise error
        self._workos.now()

    def _listing_failed(self, tx: Connection, key: Key, problem: str) -> None:
        self._held.check(tx)
        name, parent = key
        kind, listing = LISTINGS[name]
        log.warning("listing_failed", run=self._held.run_id, listing=name, parent=parent, error=problem)
        if listings.record_failure(tx, self._held.run_id, key) < MAX_TRIES:
            return
        if not parent and listing.required:
            raise ListingFailedError(problem)
        listings.give_up(tx, self._held.run_id, key)
        whose = (ORGANIZATION, parent) if parent else (kind, "all of them")
        drift.record(tx, self._held.run_id, [drift.invalid(*whose, f"its {name}: {problem}")])

    def _parent_is_gone(self, tx: Connection, key: Key) -> None:
        self._held.check(tx)
        listings.give_up(tx, self._held.run_id, key)
        request_reads(tx, ORGANIZATION, [key.parent], "its listing answered 404", self._held.run_id)

    def _take_together(self, pages: Sequence[ListedPage]) -> list[None]:
        self._write(apply_pages, self._held, pages, dry_run=self._run.dry_run)
        return [None] * len(pages)

    def _open_role_listings(self, tx: Connection) -> None:
        if self._run.organization_id is None:
            with_roles = deletions.with_own_roles(tx, self._held.run_id)
            for name in listings.named(Scope.ORGANIZATIONS_WITH_ROLES):
                listings.add(tx, self._held.run_id, name, with_roles)

    # delete

    def _choose_deletions(self) -> bool:
        self._write(deletions.prepare)
        self._write(self._choose)
        return True

    def _choose(self, tx: Connection) -> None:
        self._held.check(tx)
        run_id = self._held.run_id
        for chosen in deletions.choose(tx, run_id):
            if chosen.withheld:
                number, why = chosen.number, chosen.withheld
                log.error("deletions_withheld", run=run_id, kind=chosen.kind.name, number=number, why=why)
            for ids in chosen.batches:
                if chosen.withheld:
                    states = stored_rows(tx, chosen.kind, ids).items()
                    extra = [
                        drift.difference(chosen.kind, id, Finding.EXTRA, here, None, DriftAction.WITHHELD)
                        for id, here in states
                    ]
                    drift.record(tx, run_id, extra)
                else:
                    request_reads(tx, chosen.kind, ids, "was not listed", run_id)
        for ids in deletions.unknown_users(tx, run_id, self._run.organization_id):
            request_reads(tx, USER, ids, "its membership was listed", run_id)
        self._move_on(tx, Phase.READ)

    # read

    def _read_all(self) -> bool:
        if not self._in_parallel(self._open_reads, self._read_one):
            return False
        self._write(self._move_on, Phase.OVER)
        return True

    def _open_reads(self, limit: int) -> list[tuple[Kind, str]]:
        mine = select(Read.kind, Read.object_id).where(Read.run_id == self._held.run_id)
        query = mine.order_by(Read.attempts).limit(limit)  # what failed before comes last
        with read_transaction(self._engine) as tx:
            return [(KINDS[kind], id) for kind, id in tx.execute(query)]

    def _read_one(self, wanted: tuple[Kind, str]) -> None:
        kind, id = wanted

        def settle(tx: Connection, result: Result) -> None:
            self._settled(tx, kind, id)
            if result.finding is not Finding.NONE:
                only_reported = result.finding is Finding.ANOMALY or self._run.dry_run
                shown = result.after if result.finding is not Finding.EXTRA else None
                action = DriftAction.REPORTED if only_reported else DriftAction.REPAIRED
                row = drift.difference(kind, id, result.finding, result.before, shown, action)
                drift.record(tx, self._held.run_id, [row])

        cause, dry_run = (CAUSE, self._held.run_id), self._run.dry_run
        try:
            confirmed_read(self._engine, self._workos, kind, id, cause, settle, dry_run=dry_run)
        except PayloadError as error:
            field = error.field
            self._write(self._set_aside, kind, id, field)
        except WorkOSUnavailableError as error:
            problem = str(error)
            self._require_there(error)
            self._write(self._read_failed, kind, id, problem)
        except (LeaseLostError, InvalidApiKeyError, RedisError):
            raise
        except Exception as error:
            if is_transient(error):
                raise  # the database is away, and no object is to blame
            problem = unexpected(error)
            self._write(self._read_failed, kind, id, problem)

    def _read_failed(self, tx: Connection, kind: Kind, id: str, problem: str) -> None:
        self._held.check(tx)
        log.warning("read_failed", run=self._held.run_id, kind=kind.name, id=id, error=problem)
        here = (Read.run_id == self._held.run_id, Read.kind == kind.name, Read.object_id == id)
        tries = tx.execute(update(Read).where(*here).values(attempts=Read.attempts + 1).returning(Read.attempts))
        if tries.scalar_one() >= MAX_TRIES:
            self._set_aside(tx, kind, id, problem)

    def _set_aside(self, tx: Connection, kind: Kind, id: str, field: str) -> None:
        self._settled(tx, kind, id)
        drift.record(tx, self._held.run_id, [drift.invalid(kind, id, field)])

    def _settled(self, tx: Connection, kind: Kind, id: str) -> None:
        self._held.check(tx)
        tx.execute(delete(Read).where(Read.run_id == self._held.run_id, Read.kind == kind.name, Read.object_id == id))

    # the whole

    def _write(self, step: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        return in_transaction(self._engine, step, *args, **kwargs)

    def _leaving(self) -> bool:
        return self._stopping() or self._held.lost.is_set() or self._broken.is_set()

    def _in_parallel(self, source: Callable[[int], list[T]], work: Callable[[T], None]) -> bool:
        if in_parallel(AT_ONCE, source, work, self._leaving, self._broken):
            return True
        if self._held.lost.is_set():
            raise LeaseLostError(self._held.run_id)
        return False

    def _finish_well(self, tx: Connection) -> None:
        if self._run.organization_id is None and not self._run.dry_run and self._run.approves is None:
            seen = (Seen.run_id == self._held.run_id, Seen.kind == ORGANIZATION.name)
            known = list(tx.execute(select(Seen.object_id).where(*seen).limit(SOME)).scalars())
            listed = listings.listed_kinds(tx, self._held.run_id)
            before = tx.execute(select(Mirror.listed_kinds).with_for_update()).scalar_one() or []
            values = {"last_resync_at": db_now(), "listed_kinds": sorted({*before, *listed})}
            tx.execute(update(Mirror).values(values))
            if known:  # an empty listing is no reason to forget
                tx.execute(update(Mirror).values(known_organizations=known))
        self._finish(tx, RunStatus.DONE, None)

    def _finish(self, tx: Connection, status: RunStatus, error: str | None) -> None:
        self._leave(tx, error)
        finish(tx, self._held, status, error)
