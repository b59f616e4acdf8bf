"""The one table of conditions: everything that `status` may find wrong, how bad it is, and what to do about it.

`status`, `doctor`, the pages, the API, metrics, the alert rules in docs/deploy/alerts.yml and the runbook in
docs/operations.md read it or are compared with it by a test, so that they never disagree.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from models.tables import JoinState, RunStatus
from worker.reports.health import MIN_MISSED, Health

OVERDUE_SECONDS = 60.0
"""A healthy installation applies and delivers within seconds; what waits longer is overdue."""
CLOCK_SECONDS = 25.0
"""A running clock records a heartbeat every few seconds; after this time it counts as stopped."""
MANY_GAPS = 10
"""Webhooks missed within an hour before they are reported: a single one may be lost."""
MANY_DIFFERENCES = 20
"""Differences in a resync before they are reported, apart from objects that are new to the mirror."""
DRIFT_SECONDS = 3600.0
"""Time after a resync during which its differences are reported."""
HOOK_BEHIND = 1000
RUNBOOK = "docs/operations.md"


class Severity(StrEnum):
    """How bad it is. A `problem` alerts as page, a `warning` as ticket."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


ORDER = tuple(Severity)
COLORS = {Severity.OK: "good", Severity.WARNING: "warn", Severity.PROBLEM: "bad"}
"""The class of each severity in the pages' style sheet: green, amber, red."""


def worst(severities: Iterable[Severity]) -> Severity:
    """Return the worst of some severities, or `ok` if there are none."""
    return max(severities, key=ORDER.index, default=Severity.OK)


class Found(NamedTuple):
    """A condition holds: the values for its sentence and remedy, and its severity if it is milder than usual."""

    values: Mapping[str, object] = {}
    severity: Severity | None = None


@dataclass(frozen=True, slots=True)
class Condition:
    """A row of the table.

    Attributes:
        name: for metrics, alerts and programs.
        severity: how bad it is at worst.
        milder: whether it may also be a warning only.
        concerns_mirror: whether the mirror may be wrong or out of date while the condition holds as a problem.
        measured: what is measured, and from which value on the condition holds.
        measure: yields once for each occurrence.
        sentence: what is wrong, with the measured values.
        remedy: what to do about it.
        section: heading of its entry in the runbook.
        page: path of the page that shows more.
    """

    name: str
    severity: Severity
    measured: str
    measure: Callable[[Health], Iterable[Found]]
    sentence: str
    remedy: str
    section: str
    page: str = "/ops/"
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

    def alert(self, severity: Severity) -> str:
        """Return the name of its alert rule for one of its severities, such as `WorkosSyncNoWorker`."""
        milder = "Warning" if severity is not self.severity else ""
        return f"WorkosSync{''.join(map(str.capitalize, self.name.split('_')))}{milder}"


class Holding(NamedTuple):
    """A condition that holds now."""

    name: str
    severity: Severity
    sentence: str
    remedy: str
    runbook: str
    page: str
    doubts_mirror: bool
    """Whether the mirror cannot be trusted because of it."""

    @property
    def text(self) -> str:
        """One line for people."""
        return f"{self.sentence}: {self.remedy}"


def holding(health: Health) -> list[Holding]:
    """Return all conditions that hold, the worst first."""
    found = [_hold(condition, each) for condition in CONDITIONS for each in condition.measure(health)]
    return sorted(found, key=lambda each: -ORDER.index(each.severity))


def _hold(condition: Condition, found: Found) -> Holding:
    severity = found.severity or condition.severity
    return Holding(
        name=condition.name,
        severity=severity,
        sentence=condition.sentence.format_map(found.values),
        remedy=condition.remedy.format_map(found.values),
        runbook=condition.runbook,
        page=condition.page.format_map(found.values),
        doubts_mirror=condition.concerns_mirror and severity is Severity.PROBLEM,
    )


# What the rows measure


def _when(holds: bool, severity: Severity | None = None, **values: object) -> list[Found]:
    return [Found(values, severity)] if holds else []


def _number(number: int, singular: str, plural: str | None = None) -> str:
    return f"1 {singular}" if number == 1 else f"{number} {plural or singular + 's'}"


def duration(seconds: float) -> str:
    """Return a duration in its two largest units, such as `2 h 5 min`."""
    parts = []
    for name, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        number, seconds = divmod(seconds, size)
        if number:
            parts.append(f"{number:.0f} {name}")
    return " ".join(parts[:2]) or "0 s"


def _redis_away(health: Health) -> list[Found]:
    trouble = health.redis
    return [] if trouble is None or trouble.is_replica else [Found(trouble._asdict())]


def _redis_replica(health: Health) -> list[Found]:
    trouble = health.redis
    return [Found(trouble._asdict())] if trouble is not None and trouble.is_replica else []


def _no_worker(health: Health) -> list[Found]:
    if health.redis is not None:
        return []
    idle = [lane.name for lane in health.lanes if lane.needed and not lane.workers]
    needed = sum(lane.needed for lane in health.lanes)
    return _when(bool(idle), lanes="" if len(idle) == needed else f" on {', '.join(idle)}")


def _queued_without_worker(health: Health) -> Iterator[Found]:
    for lane in health.lanes:
        if lane.queued and not lane.workers:
            verb = "waits" if lane.queued == 1 else "wait"
            yield Found({"jobs": _number(lane.queued, "job"), "verb": verb, "lane": lane.name})


def _no_clock(health: Health) -> list[Found]:
    age = health.clock_age_seconds
    if age is None:
        return [Found({"since": "the clock has never run"})]
    return _when(age > CLOCK_SECONDS, since=f"the clock has not run for {duration(age)}")


def _backfilling(health: Health) -> list[Found]:
    running = [str(run["id"]) for run in health.runs if run["task"] in ("resync", "catch_up")]
    if not health.repairs:
        remedy = "set WORKOS_API_KEY and WORKOS_CLIENT_ID, so that workos-sync can read everything from WorkOS"
        saw = "the mirror was never filled"
    elif running:
        remedy = f"wait, or see workos-sync runs show {running[0]}"
        saw = "the mirror is not filled yet: the first resync and catch-up have not finished"
    else:
        saw, remedy = "the mirror was never filled", "start workos-sync clock and worker"
    return _when(health.mirror["state"] != "current", saw=saw, remedy=remedy)


def _refused(*reasons: str) -> Callable[[Health], list[Found]]:
    """Return the measure of deliveries refused for these reasons since the last valid one.

    They are a problem if WorkOS's deliveries are certainly among them: no delivery was ever valid with the present
    secrets, or the events API shows that webhooks are missing. Otherwise anybody may have sent them, so that a sender
    who is not WorkOS cannot turn a working installation red.
    """

    def measure(health: Health) -> list[Found]:
        counts = {reason: count for reason in reasons if (count := (health.refused or {}).get(reason))}
        certain = not health.secret_verified or health.missed >= MIN_MISSED
        return _when(
            bool(counts),
            Severity.PROBLEM if certain else Severity.WARNING,
            number=_number(sum(counts.values()), "delivery was", "deliveries were"),
            by_reason=", ".join(f"{count} {reason}" for reason, count in counts.items()),
        )

    return measure


def _resync_late(health: Health) -> list[Found]:
    age = health.resync_done_seconds
    return _when(health.repairs and age is not None and age > health.resync_late_seconds, age=duration(age or 0.0))


def _resync_failed(health: Health) -> list[Found]:
    last = health.resync
    if last is None or not health.repairs:
        return []
    return _when(last.status == RunStatus.FAILED, run=last.id, error=last.error)


def _withheld_deletions(health: Health) -> list[Found]:
    last = health.resync
    if last is None or not last.withheld:
        return []
    return [Found({"run": last.id, "number": _number(last.withheld, "deletion")})]


def _drift(health: Health) -> list[Found]:
    last = health.resync
    if last is None or last.drift is None or last.age_seconds > DRIFT_SECONDS:
        return []
    number = sum(count for (_, finding), count in last.drift.items() if finding != "missing")
    return _when(number > MANY_DIFFERENCES, run=last.id, number=number)


def _hook_lagging(health: Health) -> Iterator[Found]:
    for hook in health.hooks:
        if hook.waiting_seconds > OVERDUE_SECONDS or hook.behind > HOOK_BEHIND:
            tried = f", refused {_number(hook.attempts, 'time')}" if hook.attempts else ""
            behind, waited = _number(hook.behind, "change"), duration(hook.waiting_seconds)
            yield Found({"hook": hook.name, "behind": behind, "waited": waited, "tried": tried})


def _joins(state: JoinState) -> Callable[[Health], list[Found]]:
    def measure(health: Health) -> list[Found]:
        number = health.joins.get(state, 0)
        return _when(bool(number), joins=_number(number, "join was", "joins were"))

    return measure


def _unmapped_roles(health: Health) -> list[Found]:
    number = _number(sum(health.unmapped_roles.values()), "membership has", "memberships have")
    return _when(bool(health.unmapped_roles), number=number, slugs=", ".join(health.unmapped_roles))


P, W = Severity.PROBLEM, Severity.WARNING

CONDITIONS = (
    Condition(
        "redis_away",
        P,
        "Redis refuses or does not answer a write.",
        _redis_away,
        "Redis {saw}",
        "{remedy}",
        "Redis does not answer",
    ),
    Condition(
        "redis_replica",
        P,
        "Redis answers a write as a server that is not the primary.",
        _redis_replica,
        "Redis {saw}",
        "{remedy}",
        "Redis is a replica",
    ),
    Condition(
        "no_worker",
        P,
        "A lane that the settings need has no worker.",
        _no_worker,
        "no worker is running{lanes}",
        "start workos-sync worker",
        "No worker is running",
    ),
    Condition(
        "queued_without_worker",
        P,
        "Jobs are queued in a lane without a worker.",
        _queued_without_worker,
        "{jobs} {verb} in the lane {lane}, which has no worker",
        "start workos-sync worker with the settings of the clock and web",
        "No worker is running",
    ),
    Condition(
        "no_clock",
        P,
        f"The clock's last heartbeat is more than {CLOCK_SECONDS:.0f} s old, or there was none.",
        _no_clock,
        "{since}",
        "start workos-sync clock",
        "No clock is running",
    ),
    Condition(
        "failed_events",
        P,
        "Events have failed.",
        lambda health: _when(bool(health.failed), events=_number(health.failed, "event")),
        "{events} failed",
        "run workos-sync events failures",
        "Events failed",
        "/ops/failures",
    ),
    Condition(
        "overdue",
        P,
        f"The oldest pending event has waited for more than {OVERDUE_SECONDS:.0f} s.",
        lambda health: _when(
            health.oldest_pending_seconds > OVERDUE_SECONDS, waited=duration(health.oldest_pending_seconds)
        ),
        "the oldest pending event has waited for {waited}",
        "check worker and clock",
        "Events wait too long",
        "/ops/events?status=pending",
    ),
    Condition(
        "backfilling",
        P,
        "The first resync and catch-up have not finished.",
        _backfilling,
        "{saw}",
        "{remedy}",
        "The mirror is not filled yet",
        "/ops/runs",
    ),
    Condition(
        "silent",
        P,
        "No webhook has come for longer than usual, although the events API has newer events.",
        lambda health: _when(health.silent_seconds is not None, waited=duration(health.silent_seconds or 0.0)),
        "no webhook for {waited}, although the events API has newer events",
        "run workos-sync doctor; is the endpoint reachable?",
        "Webhooks stopped",
        "/ops/events",
    ),
    Condition(
        "signatures_refused",
        P,
        "Deliveries with a wrong or missing signature since the last valid delivery.",
        _refused("mismatch", "missing"),
        "{number} refused for the signature since the last valid one ({by_reason})",
        "set WORKOS_WEBHOOK_SECRETS to the endpoint's secret and restart web; if it is right, somebody else sends them",
        "Signatures are refused",
        milder=True,
    ),
    Condition(
        "time_refused",
        P,
        "Rightly signed deliveries refused for their time since the last valid delivery.",
        _refused("time"),
        "{number} refused for the time of the signature since the last valid one",
        "check this machine's clock with workos-sync doctor, or raise WEBHOOK_TOLERANCE_SECONDS",
        "Deliveries are refused because of their time",
        milder=True,
    ),
    Condition(
        "address_refused",
        P,
        "Deliveries refused by address since the last valid delivery.",
        _refused("address"),
        "{number} refused for the sender's address since the last valid one",
        "compare WEBHOOK_ALLOWED_IPS and TRUSTED_PROXY_HOPS with WorkOS's addresses and your proxies",
        "Deliveries are refused because of their address",
        milder=True,
    ),
    Condition(
        "unknown_path",
        P,
        "Posts with a WorkOS signature to paths that do not exist since the last valid delivery.",
        _refused("path"),
        "{number} sent to a path that does not exist since the last valid one",
        "compare the endpoint's URL in WorkOS with WEBHOOK_PATH_TOKEN; workos-sync doctor shows the path",
        "Deliveries go to a wrong path",
        milder=True,
    ),
    Condition(
        "withheld_deletions",
        P,
        "The last full resync withholds deletions that nobody has approved.",
        _withheld_deletions,
        "resync {run} withholds {number}",
        "review them, then run workos-sync resync --approve {run} --reason TEXT",
        "Deletions are withheld",
        "/ops/runs/{run}",
    ),
    Condition(
        "resync_late",
        P,
        "The last full resync that was done is older than twice RESYNC_SECONDS.",
        _resync_late,
        "the last full resync that was done is {age} old",
        "check clock and worker; see workos-sync runs list",
        "A resync is late",
        "/ops/runs",
    ),
    Condition(
        "resync_failed",
        W,
        "The last full resync failed.",
        _resync_failed,
        "resync {run} failed: {error}",
        "run workos-sync resync",
        "A resync failed",
        "/ops/runs/{run}",
    ),
    Condition(
        "hook_failed",
        P,
        "A hook refused deliveries HOOK_ATTEMPTS times.",
        lambda health: [
            Found({"deliveries": _number(hook.failed, "delivery", "deliveries"), "hook": hook.name})
            for hook in health.hooks
            if hook.failed
        ],
        "{deliveries} to the hook {hook} failed",
        "run workos-sync hooks failed {hook}",
        "A hook failed",
        "/ops/hooks",
        concerns_mirror=False,
    ),
    Condition(
        "hook_missed",
        P,
        "A hook missed changes that retention deleted.",
        lambda health: [Found({"hook": hook.name, "why": hook.missed}) for hook in health.hooks if hook.missed],
        "the hook {hook} missed changes: {why}",
        "have your product read the current state",
        "A hook failed",
        "/ops/hooks",
        concerns_mirror=False,
    ),
    Condition(
        "hook_unsupported",
        P,
        "HOOKS names a Python function, which is not called.",
        lambda health: [Found({"hook": name}) for name in health.python_hooks],
        "the hook {hook} is a Python function and is not called",
        "give it an https:// URL",
        "A hook failed",
        "/ops/hooks",
        concerns_mirror=False,
    ),
    Condition(
        "hook_lagging",
        W,
        f"A change has waited for a hook for more than {OVERDUE_SECONDS:.0f} s, or more than {HOOK_BEHIND} wait.",
        _hook_lagging,
        "the hook {hook} is {behind} behind; the oldest has waited for {waited}{tried}",
        "run workos-sync hooks list; does the receiver answer?",
        "A hook is behind",
        "/ops/hooks",
    ),
    Condition(
        "join_undone",
        W,
        "Joins were undone.",
        _joins(JoinState.UNDONE),
        "{joins} undone because an inactive membership had been reactivated",
        "run workos-sync auto-join joins --state undone",
        "A join failed or was undone",
        "/ops/auto-join",
    ),
    Condition(
        "join_failed",
        W,
        "WorkOS refused to create memberships.",
        _joins(JoinState.FAILED),
        "{joins} refused by WorkOS",
        "run workos-sync auto-join joins --state failed",
        "A join failed or was undone",
        "/ops/auto-join",
    ),
    Condition(
        "unread_objects",
        W,
        "Confirmed reads have failed five or more times.",
        lambda health: _when(bool(health.unread), number=_number(health.unread, "object"), example=health.first_unread),
        "{number} cannot be read from WorkOS, such as {example}",
        "run workos-sync explain ID",
        "Objects cannot be read",
        "/ops/explain",
    ),
    Condition(
        "domain_conflicts",
        W,
        "A domain is verified for several live workspaces.",
        lambda health: _when(bool(health.conflicts), number=_number(health.conflicts, "domain is", "domains are")),
        "{number} verified for several workspaces, so nobody joins by it",
        "run workos-sync auto-join domains --off",
        "Two workspaces hold one domain",
        "/ops/auto-join",
    ),
    Condition(
        "unmapped_roles",
        W,
        "Memberships have a role that is not in ROLE_MAP.",
        _unmapped_roles,
        "{number} a role that is not in ROLE_MAP, and so the role member: {slugs}",
        "add the roles to ROLE_MAP and restart the worker",
        "Roles are not mapped",
    ),
    Condition(
        "missed_webhooks",
        W,
        f"More than {MANY_GAPS} events of the last hour came only from the events API.",
        lambda health: _when(health.recent_gaps > MANY_GAPS, number=health.recent_gaps),
        "{number} events of the last hour came without a webhook",
        "run workos-sync doctor; does the endpoint answer in time, and is it subscribed to all event types?",
        "Some events came only from the events API",
        "/ops/events",
    ),
    Condition(
        "drift",
        W,
        f"A full resync of the last hour found more than {MANY_DIFFERENCES} differences, apart from new objects.",
        _drift,
        "resync {run} found {number} differences, which webhooks and catch-up had missed",
        "run workos-sync runs show {run}",
        "A resync found much drift",
        "/ops/runs/{run}",
    ),
)
