"""Decides which conditions to report to a target. Pure: no clock and no database.

A condition is reported once it has held for some time, again at intervals, and once it has been over for some time. So
a restart or a short outage sends nothing, and conditions that begin together are reported together.

Until a condition is reported, each comparison that does not find it restarts its wait. Afterwards, a gap shorter than
`ENDED_AFTER` is part of it, and a longer one ends it: if its end could not be reported before it returns, it is not
reported again, but it counts from its return.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import NamedTuple

Key = tuple[str, str]
"""Name of a condition, and its subject: the hook, lane or target that it is about, otherwise empty."""
PROBLEM = "problem"
ENDED_AFTER = timedelta(minutes=1)
"""How long a condition must be over before its end is reported."""


class Active(NamedTuple):
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
    """How long it must hold before it is reported."""
    explained: bool
    """Whether another condition, its cause, mentions it in its sentence. Then it is not reported separately."""

    @property
    def key(self) -> Key:
        """The key that identifies the condition."""
        return self.name, self.subject


class Recorded(NamedTuple):
    """A condition as it is recorded for a target: the columns of `models.tables.Notice`."""

    name: str
    subject: str
    severity: str
    since: datetime
    attempted: bool = False
    notified_at: datetime | None = None
    gone_since: datetime | None = None

    @property
    def key(self) -> Key:
        """The key that identifies the condition."""
        return self.name, self.subject


class Plan(NamedTuple):
    """The conditions to report to a target, and the rows to record."""

    begun: list[Active]
    continuing: list[Active]
    ended: list[Recorded]
    now: datetime
    recorded: Mapping[Key, Recorded]
    """The rows to record before anything is sent, by key."""
    changed: bool
    """Whether `recorded` differs from the present rows."""

    @property
    def has_news(self) -> bool:
        """Whether there is anything to report."""
        return bool(self.begun or self.continuing or self.ended)

    def when_attempted(self) -> dict[Key, Recorded]:
        """Return what to record before the message is sent."""
        sending = {each.key for each in self.begun}
        rows = self.recorded.items()
        return {key: row._replace(attempted=row.attempted or key in sending) for key, row in rows}

    def when_sent(self) -> dict[Key, Recorded]:
        """Return what to record once the target has accepted the message."""
        sent = {each.key: each for each in (*self.begun, *self.continuing)}
        ended = {each.key for each in self.ended}
        kept = {key: row for key, row in self.recorded.items() if key not in ended}
        return kept | {
            key: kept[key]._replace(attempted=True, notified_at=self.now, severity=each.severity)
            for key, each in sent.items()
        }


def plan(recorded: Mapping[Key, Recorded], active: Iterable[Active], now: datetime, remind: timedelta) -> Plan:
    """Return what to report to a target.

    `recorded` are the conditions recorded for the target, `active` those that hold now. All times are by the database's
    clock. `remind` is the time between two reminders.
    """
    worst = _worst(active)
    following = ((key, _next(recorded.get(key), worst.get(key), now)) for key in sorted({*recorded, *worst}))
    after = {key: each for key, each in following if each is not None}
    begun, continuing, ended = [], [], []
    for key, each in after.items():
        current = worst.get(key)
        if current is None:
            if each.gone_since is not None and now - each.gone_since >= ENDED_AFTER:
                ended.append(each)
        elif not current.explained:
            worse = current.severity == PROBLEM != each.severity
            if now - each.since < current.after:
                continue
            if each.notified_at is None or worse:
                begun.append(current)
            elif now - each.notified_at >= remind:
                continuing.append(current)
    for reported in (begun, continuing):
        reported.sort(key=lambda each: each.severity != PROBLEM)  # problems come first
    return Plan(begun, continuing, ended, now, after, dict(recorded) != after)


def _worst(active: Iterable[Active]) -> dict[Key, Active]:
    """Return one condition for each key: a problem rather than a warning."""
    found: dict[Key, Active] = {}
    for each in active:
        if each.key not in found or each.severity == PROBLEM:
            found[each.key] = each
    return found


def _next(recorded: Recorded | None, active: Active | None, now: datetime) -> Recorded | None:
    """Return what to record about a condition; None to record nothing."""
    if recorded is None or not recorded.attempted:
        # A condition that was never reported is forgotten as soon as it ends.
        if active is None or active.explained:
            return None
        row = recorded or Recorded(*active.key, active.severity, since=now)
        return row._replace(severity=active.severity)
    if active is None:
        return recorded._replace(gone_since=recorded.gone_since or now)
    if recorded.gone_since is not None and now - recorded.gone_since >= ENDED_AFTER:
        # Its end could not be reported in time.
        return recorded._replace(since=now, gone_since=None)
    return recorded._replace(gone_since=None)
