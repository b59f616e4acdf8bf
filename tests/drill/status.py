"""Asks for the status throughout, and measures for how long it is wrong: it reports what is not so, or omits what is.

The facts are measured without the product: by its processes, its Redis and queries of our own.
"""

import itertools
import json
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from http.client import HTTPException
from typing import NamedTuple

import psutil
from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import Connection, Engine, exists, func, select
from sqlalchemy.exc import DBAPIError

from models.database import read_transaction
from models.tables import (
    DeliveryStatus,
    Drift,
    DriftAction,
    Event,
    EventStatus,
    HookDelivery,
    Read,
    Run,
    RunStatus,
    Tail,
    Task,
)
from models.types import db_now, db_plus
from models.views import mirror_status
from tests.support.processes import children_of, living
from tests.support.stack.processes import StackError
from tests.support.stack.stack import Stack
from worker.kinds import KINDS
from worker.mirror import uncertainty

POLL_SECONDS = 1.0
LIMIT_SECONDS = 30.0
"""The status may be wrong for this long."""
MAX_STEP_SECONDS = 5.0
"""Longest time, in seconds, for which one answer counts. While nothing answers, the status is not known."""
API_SECONDS = 10.0
COMMAND_SECONDS = 30.0
REDIS_SECONDS = 1.0
OVERDUE_SECONDS = 60.0
"""`status` promises to report an event that has been pending for this long."""
BOUND_SECONDS = 25.0
"""The smallest staleness bound with the default settings. `status` promises to report that the mirror is older."""
FAILED_READS = 5
"""`status` promises to report an object after this many failed reads."""
MAX_PENDING = 5000
LANES = ("drain", "repair", "hooks")

NO_WORKER_ON = "no worker on "
UNTRUSTED = "untrusted"
"""The name of: the mirror cannot be trusted, for whatever reason."""
REPORTED = {
    "redis": r"Redis ",
    "clock": r"the clock ",
    "failed_events": r"\d+ events? failed",
    "overdue": r"the oldest pending event ",
    "backfilling": r"the mirror (is not filled yet|was never filled)",
    "bound_missed": (
        r"the (mirror is \d[\w .]* old|newest events were never read|database's clock was set back)"
        r"|an event that may affect anybody's access "
    ),
    "resync_failed": r"resync \w+ failed",
    "withheld_deletions": r"resync \w+ withholds ",
    "unread_objects": r"\d+ objects? cannot be read ",
    "hook_failed": r"\d+ deliver(y|ies) to the hook ",
}
"""How the status reports each of them. A text that fits none is an alarm without a cause."""
UNTRUSTWORTHY = ("redis", "clock", "failed_events", "overdue", "backfilling", "bound_missed", "withheld_deletions")
"""If one of them is so, or there is no worker, the mirror cannot be trusted."""
NO_WORKER = re.compile(r"no worker is running(?: on (?P<lanes>[\w, ]+))?:|.* in the lane (?P<lane>\w+), which has no ")
WITH_EFFECTS = re.compile(r"(?P<cause>.*?) \(therefore (?P<effects>.*)\)(?P<remedy>: .*)")
"""A cause, the sentences of the conditions that follow from it, and the remedy."""
UNCHECKED = re.compile(
    r"\d+ (memberships? ha|domains? (is|are) verified|events? of the last hour)"
    r"|\d+ deliver(y was|ies were) refused because of the signature|resync \w+ found \d+ differences|the hook \w+ is "
    r"|the newest events are read every |ROLE_MAP would make |\d+ SAML certificates? "
)
"""Conditions that the sandbox and the slow hook cause all the time; nothing here measures them."""


class Answer(NamedTuple):
    """An answer of the status: whether the mirror can be trusted (None: not said), and all problems and warnings."""

    trusted: bool | None
    texts: list[str]


Facts = dict[str, bool]
"""Whether each of these things is wrong, by name. Of the names that are missing it is not known."""


class Truth:
    """The facts about a stack with the lanes `lanes`. `engine` leads to its database past all faults."""

    def __init__(self, stack: Stack, engine: Engine, lanes: tuple[str, ...] = LANES) -> None:
        self._stack, self._engine, self._lanes = stack, engine, lanes
        self._log_read = 0
        self._lane_of: dict[int, str] = {}
        self._pending_since: dict[str, float] = {}

    def measure(self) -> Facts:
        """Return what is known now."""
        facts = {"clock": not any(map(_works, living(self._stack.processes["clock"].pid)))}
        facts["redis"] = not self._redis_works()
        if not facts["redis"]:  # a status without Redis cannot know the workers
            working = self._working_lanes()
            facts |= {NO_WORKER_ON + lane: lane not in working for lane in self._lanes}
        try:
            with read_transaction(self._engine) as tx:
                facts |= self._stored(tx)
        except DBAPIError:
            return facts
        untrusted = any(facts[name] for name in facts if name in UNTRUSTWORTHY or name.startswith(NO_WORKER_ON))
        # After a failed resync the mirror may be right or wrong.
        return facts | ({} if facts["resync_failed"] and not untrusted else {UNTRUSTED: untrusted})

    def _redis_works(self) -> bool:
        """Whether a new connection leads to a Redis that accepts writes."""
        timeouts = {"socket_timeout": REDIS_SECONDS, "socket_connect_timeout": REDIS_SECONDS}
        try:
            with Redis.from_url(self._stack.redis_url, **timeouts) as redis:
                return bool(redis.set("drill", 1, px=1000))
        except RedisError:
            return False

    def _working_lanes(self) -> set[str]:
        """The lanes with a process that is neither dead nor stopped."""
        with (self._stack.logs / "worker.log").open("rb") as log:
            log.seek(self._log_read)
            for line in log:
                if not line.endswith(b"\n"):
                    break
                self._log_read += len(line)
                if b'"worker_started"' in line:
                    started = json.loads(line)
                    self._lane_of[started["pid"]] = started["lane"]
        children = children_of(living(self._stack.processes["worker"].pid))
        return {self._lane_of[child.pid] for child in children if child.pid in self._lane_of and _works(child)}

    def _stored(self, tx: Connection) -> Facts:
        failed = exists().where(Event.status == EventStatus.FAILED)
        unread = exists().where(Read.run_id == "", Read.attempts >= FAILED_READS)
        gave_up = exists().where(HookDelivery.status == DeliveryStatus.FAILED)
        last_resync = (
            select(Run.id, Run.status)
            .where(
                Run.task == Task.RESYNC, Run.organization_id.is_(None), ~Run.dry_run, Run.status != RunStatus.RUNNING
            )
            .order_by(Run.finished_at.desc(), Run.id)
            .limit(1)
        )
        ended = tx.execute(last_resync).one_or_none()
        state = tx.execute(select(mirror_status.c.state)).scalar_one()
        late = func.coalesce(Tail.complete_at < db_plus(db_now(), -BOUND_SECONDS), True)
        everything = exists().where(*uncertainty.ALL_UNCERTAIN)
        is_late = bool(tx.execute(select(late | everything)).scalar_one())
        now = time.monotonic()
        pending = select(Event.id).where(Event.status == EventStatus.PENDING).order_by(Event.received_at)
        ids = tx.execute(pending.limit(MAX_PENDING)).scalars()
        self._pending_since = {id: self._pending_since.get(id, now) for id in ids}
        return {
            "failed_events": bool(tx.execute(select(failed)).scalar_one()),
            "unread_objects": bool(tx.execute(select(unread)).scalar_one()),
            "hook_failed": bool(tx.execute(select(gave_up)).scalar_one()),
            "resync_failed": ended is not None and ended.status == RunStatus.FAILED,
            "withheld_deletions": ended is not None and _withholds(tx, ended.id),
            "backfilling": state != "current",
            "bound_missed": state == "current" and is_late,
            "overdue": min(self._pending_since.values(), default=now) < now - OVERDUE_SECONDS,
        }


def _works(process: psutil.Process) -> bool:
    try:
        return bool(process.status() not in {psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE})
    except psutil.NoSuchProcess:
        return False


def _withholds(tx: Connection, run_id: str) -> bool:
    """Whether a resync withholds deletions of objects that are still there: events may have deleted them since."""
    for name, kind in KINDS.items():
        live = select(kind.table.__table__.c.id).where(kind.table.__table__.c.deleted_by.is_(None))
        withheld = exists().where(
            Drift.run_id == run_id,
            Drift.action == DriftAction.WITHHELD,
            Drift.kind == name,
            Drift.object_id.in_(live),
        )
        if tx.execute(select(withheld)).scalar_one():
            return True
    return False


def ask_api(stack: Stack) -> Answer:
    """Ask `/api/v1/status`; raise `StackError` if it does not answer."""
    request = urllib.request.Request(
        f"{stack.web_url}/api/v1/status", headers={"Authorization": f"Bearer {stack.token}"}
    )
    try:
        with urllib.request.urlopen(request, timeout=API_SECONDS) as answer:
            said = json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            said = json.load(error) if error.code == HTTPStatus.SERVICE_UNAVAILABLE else {}
        if "trusted" not in said:
            raise StackError(f"/api/v1/status answered {error.code}") from error
    except (OSError, HTTPException, ValueError) as error:
        raise StackError(f"/api/v1/status did not answer: {error}") from error
    return Answer(said["trusted"], [*said["reasons"], *said.get("problems", ()), *said["warnings"]])


def ask_command(stack: Stack) -> Answer:
    """Run `workos-sync status --json`; raise `StackError` if it does not answer."""
    printed = stack.printed("status", "--json", seconds=COMMAND_SECONDS)
    try:
        said = json.loads(printed)
    except ValueError as error:
        raise StackError(f"status did not answer: {error}") from error
    return Answer(None, said["problems"] + said["warnings"])


def reported(answer: Answer, lanes: tuple[str, ...] = LANES) -> set[str]:
    """Return the names of the facts that an answer reports; a text that belongs to none is a name itself."""
    found = {UNTRUSTED} if answer.trusted is False else set()
    for text in itertools.chain.from_iterable(map(_single, answer.texts)):
        if without := NO_WORKER.match(text):
            named = without["lane"] or without["lanes"]
            found |= {NO_WORKER_ON + lane for lane in (named.split(", ") if named else lanes)}
        elif not UNCHECKED.match(text):
            names = [name for name, pattern in REPORTED.items() if re.match(pattern, text)]
            found.add(names[0] if names else re.sub(r"\d+", "N", text))
    return found


def _single(text: str) -> list[str]:
    """Return a text without its effects, and each of them."""
    whole = WITH_EFFECTS.fullmatch(text)
    return [whole["cause"] + whole["remedy"], *whole["effects"].split("; ")] if whole else [text]


@dataclass
class Stretch:
    """A time without a right answer about one fact, which was `reported` wrongly or wrongly not reported."""

    name: str
    reported: bool
    began: datetime
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        how = "reported, although it was not so," if self.reported else "not reported, although it was so,"
        when = f"for {self.seconds:.0f} s from {self.began:%H:%M:%S}"
        return f"{self.name!r} {how} {when}, during {', '.join(self.faults) or 'no fault'}"


@dataclass
class Record:
    """How long the answers of one source were wrong.

    Attributes:
        name: of what was asked.
        longest: the longest time without a right answer about one fact.
        wrong: a line for each time that was longer than `LIMIT_SECONDS`.
    """

    name: str
    longest: Stretch | None = None
    wrong: list[str] = field(default_factory=list)
    _stretches: dict[str, Stretch] = field(default_factory=dict)

    @property
    def right(self) -> bool:
        """Whether the last answer was right."""
        return not self._stretches

    def add(self, answer: Answer, facts: Facts, seconds: float, faults: list[str]) -> None:
        """Compare an answer, which counts for `seconds`, with the facts, and note the faults in force."""
        known = {name: value for name, value in facts.items() if name != UNTRUSTED or answer.trusted is not None}
        found = _compare(reported(answer), known)
        for name, stretch in list(self._stretches.items()):
            if found.get(name) is not stretch.reported:
                self._end(name)
        for name, is_reported in found.items():
            stretch = self._stretches.setdefault(name, Stretch(name, is_reported, datetime.now(UTC)))
            stretch.seconds += seconds
            stretch.faults += [fault for fault in faults if fault not in stretch.faults]
            if self.longest is None or stretch.seconds > self.longest.seconds:
                self.longest = stretch

    def close(self) -> None:
        """Add the times that have not ended yet."""
        for name in list(self._stretches):
            self._end(name)

    def _end(self, name: str) -> None:
        stretch = self._stretches.pop(name)
        if stretch.seconds > LIMIT_SECONDS:
            self.wrong.append(f"{self.name}: {stretch}")


def _compare(said: set[str], facts: Facts) -> dict[str, bool]:
    """Return the facts about which the status is wrong, and whether it reports each."""
    known = [name for name in said | facts.keys() if name in facts or not _is_fact(name)]
    return {name: name in said for name in known if (name in said) != facts.get(name, False)}


def _is_fact(name: str) -> bool:
    return name in REPORTED or name == UNTRUSTED or name.startswith(NO_WORKER_ON)


class Watch:
    """Begins at once: asks every `every` seconds, and compares each answer with the truth.

    Args:
        name: of what is asked.
        ask: returns an answer, or raises `StackError`.
        truth: measures what is so.
        every: seconds between two questions.
        faults: returns the faults in force, for the record.
    """

    def __init__(
        self, name: str, ask: Callable[[], Answer], truth: Truth, every: float, faults: Callable[[], list[str]] = list
    ) -> None:
        self.asked = self.unanswered = 0
        self.record = Record(name)
        self.faults = faults
        self._ask, self._truth, self._every = ask, truth, every
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=name, daemon=True)
        self._thread.start()

    def require_asking(self) -> None:
        """Raise `StackError` if the drill itself is broken: nothing asks any more."""
        if not self._thread.is_alive():
            raise StackError("the drill itself is broken: a thread that asks has ended, see the traceback above")

    def wait_until_right(self, seconds: float) -> None:
        """Return once two answers more are right, or after `seconds`."""
        ends, asked = time.monotonic() + seconds, self.asked
        while time.monotonic() < ends and not (self.record.right and self.asked >= asked + 2):
            time.sleep(0.1)

    def stop(self) -> None:
        """Ask no more."""
        self._over.set()
        self._thread.join()
        self.record.close()

    def _watch(self) -> None:
        last = time.monotonic()
        while not self._over.wait(max(0.0, last + self._every - time.monotonic())):
            now = time.monotonic()
            self.asked += 1
            try:
                answer = self._ask()
            except StackError:
                self.unanswered += 1
            else:
                seconds = min(now - last, max(self._every, MAX_STEP_SECONDS))
                self.record.add(answer, self._truth.measure(), seconds, self.faults())
            last = now
