"""What a condition is: something that `status` may find wrong. `worker.reports.conditions` lists all of them."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import NamedTuple
from urllib.parse import quote

from worker.reports.health import Health

RUNBOOK = "docs/operations.md"
PUBLIC_VALUES = frozenset(
    (
        *("age", "behind", "by_reason", "deliveries", "digest", "hook", "interval", "jobs", "lane", "lanes", "members"),
        *("number", "promotions", "run", "since", "target", "them", "tried", "verb", "waited", "wanted", "what"),
    )
)
"""Measured values that may leave the installation: counts, durations, ids of runs, and names of hooks and lanes."""
CLOCK = "clock"
"""The process, among the lanes in `needs`."""


class Severity(StrEnum):
    """How bad it is. A `problem` raises an alert of severity `page`, a `warning` one of severity `ticket`."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


ORDER = tuple(Severity)
COLORS = {Severity.OK: "good", Severity.WARNING: "warn", Severity.PROBLEM: "bad"}
"""The class of each severity in the pages' style sheet: green, amber, red."""


def worst(severities: Iterable[Severity]) -> Severity:
    """Return the worst of some severities, or `ok` if there are none."""
    return max(severities, key=ORDER.index, default=Severity.OK)


class Occurrence(NamedTuple):
    """A condition holds: the values for its sentence and remedy, and its severity if it is milder than usual."""

    values: Mapping[str, object] = {}
    severity: Severity | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """A row of the table.

    Attributes:
        name: for metrics, alerts and programs.
        severity: how bad it is at worst; a problem unless given.
        milder: whether it is sometimes only a warning.
        concerns_mirror: whether the mirror may be wrong or out of date while the condition holds as a problem.
        measured: what is measured, and the threshold.
        measure: yields once for each occurrence.
        sentence: what is wrong, with the measured values. It has no semicolon, which separates the effects of a cause.
        notice: the sentence for notifications, which leave the installation, if `sentence` contains an error message,
            an address of a server, or anything about a person. It may use only the values in `PUBLIC_VALUES`.
        subject: the name of a value that distinguishes occurrences for notifications, such as `hook`; empty if a
            second occurrence is no news.
        remedy: what to do about it.
        after: how long it must hold before an alert is raised and a notification is sent.
        milder_after: the same for the milder severity.
        section: heading of its entry in the runbook.
        page: path of the page that shows more, with the measured values.
        page_remedy: what to do there, in the pages' words; empty if the remedy has no command that the page replaces.
        needs: lanes, or `clock`. While one of them does not run, that explains the condition. An occurrence adds its
            own `lane`.
    """

    name: str
    severity: Severity = Severity.PROBLEM
    measured: str
    measure: Callable[[Health], Iterable[Occurrence]]
    sentence: str
    notice: str = ""
    subject: str = ""
    remedy: str
    after: timedelta
    milder_after: timedelta = timedelta(minutes=10)
    section: str
    page: str = "/ops/"
    page_remedy: str = ""
    needs: tuple[str, ...] = ()
    milder: bool = False
    concerns_mirror: bool = True

    @property
    def severities(self) -> tuple[Severity, ...]:
        """The severities that it may have."""
        return (Severity.WARNING, self.severity) if self.milder else (self.severity,)

    @property
    def runbook(self) -> str:
        """The address of its entry in the runbook."""
        anchor = re.sub(r"[^\w\- ]", "", self.section.lower()).replace(" ", "-")
        return f"{RUNBOOK}#{anchor}"

    def delay(self, severity: Severity) -> timedelta:
        """Return how long it must hold with a severity before anybody is notified."""
        return self.after if severity is self.severity else self.milder_after

    def alert(self, severity: Severity) -> str:
        """Return the name of its alert rule for one of its severities, such as `WorkosSyncNoWorker`."""
        milder = "Warning" if severity is not self.severity else ""
        return f"WorkosSync{''.join(map(str.capitalize, self.name.split('_')))}{milder}"


class ActiveCondition(NamedTuple):
    """A condition that holds now."""

    name: str
    severity: Severity
    sentence: str
    remedy: str
    runbook: str
    page: str
    doubts_mirror: bool
    """Whether the mirror cannot be trusted because of it."""
    because_of: str | None
    """The name of the condition that explains it: a process does not run, or Redis cannot be used."""

    @property
    def text(self) -> str:
        """One line for people."""
        return f"{self.sentence}: {self.remedy}"


class Measured(NamedTuple):
    """An occurrence of a condition, with its severity and the name of the condition that explains it, if one does."""

    condition: Condition
    values: Mapping[str, object]
    severity: Severity
    because_of: str | None

    @property
    def page(self) -> str:
        """The path of the page that shows more."""
        escaped = {name: quote(str(value), safe="") for name, value in self.values.items()}
        return self.condition.page.format_map(escaped)
