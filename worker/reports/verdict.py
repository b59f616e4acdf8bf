"""The verdict on the installation at one moment: its measurements, and the conditions that hold."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from redis import Redis
from sqlalchemy import Engine

from models.types import Record
from worker.reports.condition import ActiveCondition, Severity, worst
from worker.reports.conditions import CONDITIONS, active_conditions
from worker.reports.health import Health, check_health
from worker.settings import Settings

T = TypeVar("T")


class RootCause(NamedTuple):
    """A condition that no other explains, and the sentences of those that it explains."""

    condition: ActiveCondition
    effects: list[str]

    @property
    def sentence(self) -> str:
        """The problem, with its effects in brackets."""
        return self.condition.sentence + (f" (therefore {'; '.join(self.effects)})" if self.effects else "")

    @property
    def text(self) -> str:
        """One line for people."""
        return f"{self.sentence}: {self.condition.remedy}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The conditions that hold now, the worst first."""

    health: Health
    conditions: list[ActiveCondition]

    @property
    def severity(self) -> Severity:
        """The worst severity of all conditions that hold."""
        return worst(each.severity for each in self.conditions)

    @property
    def trusted(self) -> bool:
        """Whether the mirror can be trusted: it is filled, and no problem concerns it."""
        return not any(each.doubts_mirror for each in self.conditions)

    @property
    def causes(self) -> list[RootCause]:
        """For people: one entry for each cause, the worst first."""
        explained = [(each.because_of, each.sentence) for each in self.conditions]
        return [
            RootCause(each, [sentence for cause, sentence in explained if cause == each.name])
            for each in self.conditions
            if each.because_of is None
        ]

    @property
    def headline(self) -> str:
        """One sentence for people, without a full stop."""
        if not self.trusted:
            return "Mirror is not trustworthy"
        but = {Severity.PROBLEM: ", but something else is wrong", Severity.WARNING: ", with warnings"}
        return f"Mirror is trustworthy{but.get(self.severity, '')}"

    @property
    def reasons(self) -> list[str]:
        """Why the mirror cannot be trusted; empty if it can."""
        return [each.text for each in self.causes if each.condition.doubts_mirror]

    def texts(self, severity: Severity) -> list[str]:
        """Return one line for each cause of this severity."""
        return [each.text for each in self.causes if each.condition.severity is severity]

    def of(self, *names: str) -> Severity:
        """Return the worst severity of these conditions: `ok` if none of them holds.

        Raises:
            ValueError: there is no condition with one of the names.
        """
        if unknown := set(names) - {condition.name for condition in CONDITIONS}:
            raise ValueError(f"no such condition: {', '.join(sorted(unknown))}")
        return worst(each.severity for each in self.conditions if each.name in names)


def judge(engine: Engine, redis: Redis, settings: Settings) -> Verdict:
    """Return the verdict now; arguments and errors are those of `check_health`."""
    health = check_health(engine, redis, settings)
    return Verdict(health, active_conditions(health))


class Cached(Generic[T]):
    """Calls a function, which must not raise, and returns its result for `seconds` after the call has ended.

    Callers at the same time wait for one call together. The time is counted from its end: a call that takes longer than
    `seconds` would otherwise be repeated by each of them in turn.
    """

    def __init__(self, function: Callable[[], T], seconds: float) -> None:
        self._function = function
        self._seconds = seconds
        self._lock = threading.Lock()
        self._last: tuple[float, T] | None = None

    def __call__(self) -> T:
        """Return the function's result."""
        with self._lock:
            if self._last is None or time.monotonic() - self._last[0] > self._seconds:
                result = self._function()
                self._last = (time.monotonic(), result)
            return self._last[1]


def as_report(verdict: Verdict) -> Record:
    """Return the report of `status`: numbers, and texts for an operator."""
    health = verdict.health
    workers = health.lanes[0].workers
    return {
        "severity": verdict.severity,
        "mirror": health.mirror,
        "tail_interval_seconds": health.tail_interval_seconds,
        "late_events": health.late_events,
        "uncertain_events": health.uncertain,
        "pending": health.pending,
        "oldest_pending_seconds": health.oldest_pending_seconds,
        "failed": health.failed,
        "webhooks_expected": health.webhooks_expected,
        "gaps": health.gaps,
        "late": health.late,
        "silent_seconds": health.silent_seconds,
        "unmapped_roles": [_holders(slug, number) for slug, number in health.unmapped_roles.items()],
        "auto_join_conflicts": health.conflicts,
        "domains": [f"{number} {state}" for state, number in sorted(health.domains.items())],
        "joins": [f"{number} {state}" for state, number in sorted(health.joins.items())],
        "revocations": [f"{number} {state}" for state, number in sorted(health.revocations.items())],
        "missing_joins": health.missing_joins,
        "workspaces_without_admin": health.without_admin,
        "hooks": [f"{hook.name}: {hook.behind} behind, {hook.failed} failed" for hook in health.hooks],
        "repair": "on" if health.repairs else "off: WORKOS_API_KEY is not set",
        "runs": [describe_run(run) for run in health.runs],
        "workers": None if workers is None else len(workers),
        "problems": verdict.texts(Severity.PROBLEM),
        "warnings": verdict.texts(Severity.WARNING),
        "conditions": [each._asdict() for each in verdict.conditions],
    }


def _holders(slug: str, number: int) -> str:
    return f"{slug}: {number} {'membership' if number == 1 else 'memberships'}"


def describe_run(run: Record) -> str:
    """Return one line about a run in progress."""
    progress = f"{run['done']} of {run['total']}" if run["total"] is not None else run["phase"]
    queued = "queued" if run["queued"] else ""
    who = f"requested by {run['requested_by']}"
    return ", ".join(filter(None, (f"{run['task'].replace('_', '-')} {run['id']}", queued, progress, who)))
