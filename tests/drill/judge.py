"""The result of a drill: numbers, and the promises that did not hold."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from sqlalchemy import ColumnElement, Engine, exists, func, or_, select

from models.database import read_transaction
from models.outcomes import Outcome
from models.tables import Cause, Change, Event, EventStatus, MirrorState, Run, Task
from tests.demo.play import Sample
from tests.drill.follower import Follower
from tests.drill.hosts import Host
from tests.drill.installation import Installation
from tests.drill.status import LIMIT_SECONDS, Watch
from tests.support import differences
from tests.support.inbox import count
from tests.support.stack.machine import JSON, call
from worker.reports import listings

MAX_NAMED = 5
IN_TIME_SECONDS = 10.0
"""A hook that answers at once receives a change within this time, whatever other hooks do."""


@dataclass
class Verdict:
    """`numbers` by what they count; `wrong`: a line for each promise that did not hold."""

    numbers: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def none_of(self, what: str, found: Iterable[object]) -> None:
        """Count the items of `found`, which must be none, and name some of them."""
        listed = list(found)
        self.numbers[what] = len(listed)
        if listed:
            self.wrong.append(f"{what}: {len(listed)}, such as {', '.join(map(str, listed[:MAX_NAMED]))}")


def judge(installation: Installation, engine: Engine, last: Sample, follower: Follower, resynced: JSON) -> Verdict:
    """Return the verdict after the final resync, which is the run `resynced`."""
    workos = last.workos
    records: JSON = call("GET", f"{installation.sandbox_url}/sandbox/records")
    verdict = Verdict(
        {
            "events made by WorkOS": workos["generated"],
            "deliveries sent": last.sent,
            "  retried": workos["retried"],
            "  refused (not 2xx)": workos["refused"],
            "  unanswered": workos["unanswered"],
            "  abandoned after all retries": workos["given_up"],
            "events acknowledged": workos["acknowledged"],
            "events that only catch-up brought": last.caught_up,
            "events applied": count(engine, Event.status == EventStatus.DONE),
            "rows in changes": _changes(engine),
            "events that a fault cost an attempt": count(engine, Event.attempts > 0),
        }
    )
    acknowledged, any_event = lost(engine, records)
    verdict.none_of("acknowledged events lost", acknowledged)
    verdict.none_of("events lost", any_event)
    verdict.none_of("events that WorkOS never made", _ids(engine, Event.status == EventStatus.DONE) - records.keys())
    verdict.none_of("applied twice", _doubled(engine))
    verdict.none_of("applied without a row in changes", _unrecorded(engine))
    verdict.none_of("failed", _ids(engine, Event.status == EventStatus.FAILED))
    verdict.none_of("forged deliveries accepted", ["a forged one"] * workos["forged_accepted"])
    verdict.none_of("changes that the follower missed, or saw twice or late", _unfollowed(engine, follower))
    verdict.none_of("differences from WorkOS", _differences(installation, engine))
    verdict.none_of("drift that the resync at the end found", _drift(engine, resynced))
    return verdict


def judge_hooks(verdict: Verdict, engine: Engine, host: Host, phase: tuple[int, int]) -> None:
    """Judge the deliveries to the good hook: complete, in order, and in time in the `phase` beside a slow one.

    `phase`: the last change before it, and the last of it.
    """
    at = _changes_to_send(engine)
    first, last = phase
    in_phase = [id for id in at if first < id <= last]
    late = [
        f"{id} after {host.took[id] - at[id]:.1f} s"
        for id in in_phase
        if id in host.took and host.took[id] - at[id] > IN_TIME_SECONDS
    ]
    verdict.numbers["changes that the good hook received"] = len(host.took)
    verdict.numbers["  beside a slow one"] = len(in_phase)
    verdict.none_of("changes that the good hook never received", sorted(at.keys() - host.took.keys()))
    verdict.none_of(
        "objects whose changes it received out of order", (key for key, ids in host.order.items() if ids != sorted(ids))
    )
    verdict.none_of("changes that it received late, beside a slow one", late)


def judge_status(verdict: Verdict, watches: Iterable[Watch]) -> None:
    """Judge what the status said throughout."""
    listed = list(watches)
    verdict.numbers["answers of status"] = sum(watch.asked - watch.unanswered for watch in listed)
    verdict.numbers["  longest time wrong, in seconds"] = round(
        max((watch.record.longest.seconds for watch in listed if watch.record.longest), default=0)
    )
    wrong = [line for watch in listed for line in watch.record.wrong]
    verdict.numbers[f"status wrong for longer than {LIMIT_SECONDS:.0f} s"] = len(wrong)
    verdict.wrong += wrong


def lost(engine: Engine, records: JSON) -> tuple[set[str], set[str]]:
    """Return the ids of the events that were acknowledged but not kept, and of all that were not applied.

    `records`: what the sandbox recorded about its deliveries, by event id.
    """
    acknowledged = {event_id for event_id, record in records.items() if record["acknowledged"]}
    # Although catch-up brings them again, one that was answered with 200 must have been kept then.
    kept = _ids(engine, Event.webhook_at.is_not(None), Event.status == EventStatus.DONE)
    return acknowledged - kept, records.keys() - _ids(engine, Event.status == EventStatus.DONE)


def _changes_to_send(engine: Engine) -> dict[int, float]:
    """Return the changes that hooks receive, and when each was made, in seconds since the epoch.

    The first resync fills the mirror: what it changes had not changed in WorkOS, and is not sent.
    """
    filling = select(Run.id).where(
        Run.task == Task.RESYNC, Run.created_at < select(MirrorState.backfilled_at).scalar_subquery()
    )
    sent = or_(Change.cause != Cause.RESYNC, Change.cause_id.not_in(filling))
    with read_transaction(engine) as tx:
        return {id: at.timestamp() for id, at in tx.execute(select(Change.id, Change.at).where(sent))}


def _differences(installation: Installation, engine: Engine) -> list[str]:
    return differences(engine, call("GET", f"{installation.sandbox_url}/sandbox/truth"))


def _drift(engine: Engine, run: JSON) -> list[str]:
    rows = [f"{row['finding']} {row['kind']} {row['object_id']}" for row in listings.drift(engine, run["id"])]
    return rows + [f"the run ended with: {run['error']}"] * bool(run["error"])


def _ids(engine: Engine, *conditions: ColumnElement[bool]) -> set[str]:
    with read_transaction(engine) as tx:
        return set(tx.execute(select(Event.id).where(*conditions)).scalars())


def _changes(engine: Engine) -> int:
    with read_transaction(engine) as tx:
        return tx.execute(select(func.count()).select_from(Change)).scalar_one()


def _doubled(engine: Engine) -> list[str]:
    """One event changes one object once at most, apart from what a read for it finds (`workos_after`)."""
    key = (Change.kind, Change.object_id, Change.cause_id)
    by_event = (Change.cause == "event", Change.workos_after.is_(None))
    twice = select(*key).where(*by_event).group_by(*key).having(func.count() > 1)
    with read_transaction(engine) as tx:
        return [f"{kind} {object_id} by {event_id}" for kind, object_id, event_id in tx.execute(twice)]


def _unrecorded(engine: Engine) -> set[str]:
    recorded = exists().where(Change.cause == "event", Change.cause_id == Event.id)
    return _ids(engine, Event.outcome == Outcome.APPLIED, ~recorded)


def _unfollowed(engine: Engine, follower: Follower) -> list[str]:
    """The changes that the follower did not see exactly once and in ascending order."""
    with read_transaction(engine) as tx:
        there = list(tx.execute(select(Change.id).order_by(Change.id)).scalars())
    wrong = [str(id) for id in sorted(set(there) ^ set(follower.seen))]
    if not wrong and there != follower.seen:
        wrong = ["their order"]
    return wrong + [follower.problem] * bool(follower.problem)
