"""Decides what to tell a target. Pure: no clock and no database.

A condition is told once it has held for a while, again at intervals, and once it has been gone for a while. So a
restart or a short outage tells nobody, and conditions that begin together are told together.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import NamedTuple

Key = tuple[str, str]
"""Name of a condition, and its subject: the hook, lane or target that it is about, otherwise empty."""
PROBLEM = "problem"
ENDED_AFTER = timedelta(minutes=1)
"""How long a condition must be gone before that is told."""


class Held(NamedTuple):
    """A condition that holds now. Its texts contain nothing about a person."""

    name: str
    subject: str
    severity: str
    """`problem` or `warning`."""
    sentence: str
    remedy: str
    page: str
    """The path of the page that shows more."""
    after: timedelta
    """How long it must hold before it is told."""
    explained: bool
    """Whether another condition explains it, whose sentence mentions it: it is not told by itself."""

    @property
    def key(self) -> Key:
        """What identifies the condition."""
        return self.name, self.subject


class Known(NamedTuple):
    """A condition as a target knows it: the columns of `models.tables.Notice`."""

    name: str
    subject: str
    severity: str
    since: datetime
    attempted: bool = False
    told_at: datetime | None = None
    gone_since: datetime | None = None

    @property
    def key(self) -> Key:
        """What identifies the condition."""
        return self.name, self.subject


class Plan(NamedTuple):
    """What to tell a target, and what to record."""

    begun: list[Held]
    continuing: list[Held]
    ended: list[Known]
    now: datetime
    known: Mapping[Key, Known]
    """What to record before anything is sent."""
    changed: bool
    """Whether `known` differs from what is recorded."""

    @property
    def says(self) -> bool:
        """Whether there is anything to tell."""
        return bool(self.begun or self.continuing or self.ended)

    def when_attempted(self) -> dict[Key, Known]:
        """Return what to record before the message is sent."""
        telling = {each.key for each in self.begun}
        return {key: known._replace(attempted=known.attempted or key in telling) for key, known in self.known.items()}

    def when_told(self) -> dict[Key, Known]:
        """Return what to record once the target has accepted the message."""
        told = {each.key: each for each in (*self.begun, *self.continuing)}
        ended = {each.key for each in self.ended}
        return {
            key: known._replace(attempted=True, told_at=self.now, severity=told[key].severity) if key in told else known
            for key, known in self.known.items()
            if key not in ended
        }


def plan(known: Mapping[Key, Known], held: Iterable[Held], now: datetime, remind: timedelta) -> Plan:
    """Return what to tell a target that knows `known`, while `held` holds.

    `now`, and the times in `known`, are by the database's clock. `remind` is the time between two reminders.
    """
    worst = _worst(held)
    following = ((key, _next(known.get(key), worst.get(key), now)) for key in sorted({*known, *worst}))
    after = {key: each for key, each in following if each is not None}
    begun, continuing, ended = [], [], []
    for key, each in after.items():
        current = worst.get(key)
        if current is None:
            if each.gone_since is not None and now - each.gone_since >= ENDED_AFTER:
                ended.append(each)
        elif not current.explained:
            worse = current.severity == PROBLEM != each.severity
            if (each.told_at is None or worse) and now - each.since >= current.after:
                begun.append(current)
            elif each.told_at is not None and now - each.told_at >= remind:
                continuing.append(current)
    for told in (begun, continuing):
        told.sort(key=lambda each: each.severity != PROBLEM)  # problems come first
    return Plan(begun, continuing, ended, now, after, dict(known) != after)


def _worst(held: Iterable[Held]) -> dict[Key, Held]:
    """Return one of the conditions with the same key: a problem rather than a warning."""
    found: dict[Key, Held] = {}
    for each in held:
        if each.key not in found or each.severity == PROBLEM:
            found[each.key] = each
    return found


def _next(known: Known | None, held: Held | None, now: datetime) -> Known | None:
    """Return what to record about a condition; None if nothing."""
    if known is None or not known.attempted:  # what was never told is forgotten as soon as it ends
        if held is None or held.explained:
            return None
        return known._replace(severity=held.severity) if known else Known(*held.key, held.severity, since=now)
    if held is None:
        return known._replace(gone_since=known.gone_since or now)
    return known._replace(gone_since=None)
