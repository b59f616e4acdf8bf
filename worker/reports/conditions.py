"""The one table of conditions: everything that `status` may find wrong, how bad it is, and what to do about it.

`status`, `doctor`, the pages, the API, metrics, the alert rules in docs/deploy/alerts.yml and the runbook in
docs/operations.md read it or are compared with it by a test, so that they never disagree.
"""

from collections.abc import Iterator
from datetime import timedelta
from functools import partial

from models.tables import JoinState, RevocationState, RunStatus
from worker.mirror.role_map import digest_of
from worker.queue.doorbell import DRAIN, HOOKS, REPAIR, SESSIONS
from worker.reports.condition import CLOCK, ORDER, ActiveCondition, Condition, Measured, Occurrence, Severity
from worker.reports.health import EXPIRY_DAYS, MIN_MISSED, Health
from worker.times import duration

OVERDUE_SECONDS = 60
"""A healthy installation applies and delivers within seconds. An event that waits longer is overdue."""
CLOCK_SECONDS = 25
"""A running clock records a heartbeat every few seconds; after this time it counts as stopped."""
MANY_GAPS = 10
"""Webhooks missed within an hour before they are reported: a single one may be lost."""
MANY_DIFFERENCES = 20
"""Differences in a resync before they are reported, apart from objects that are new to the mirror."""
DRIFT_SECONDS = 3600.0
"""Time after a resync during which its differences are reported."""
HOOK_BEHIND = 1000
REVOCATION_SECONDS = 300
"""Sessions are revoked within seconds. A deleted workspace of many members takes longer, because of the rate limit."""
MIN_FAILED_SENDS = 3
"""Attempts to notify a target, one after the other, that failed before it is reported."""
REASONS = {"mismatch": "wrong", "missing": "without one"}
"""The words for each reason of refused signatures."""


def measured(health: Health) -> list[Measured]:
    """Return all occurrences of conditions, the worst first."""
    found = [
        Measured(condition, each.values, each.severity or condition.severity, _explanation(condition, each, health))
        for condition in CONDITIONS
        for each in condition.measure(health)
    ]
    return sorted(found, key=lambda each: -ORDER.index(each.severity))


def active_conditions(health: Health) -> list[ActiveCondition]:
    """Return all conditions that hold, the worst first."""
    return [
        ActiveCondition(
            name=each.condition.name,
            severity=each.severity,
            sentence=each.condition.sentence.format_map(each.values),
            remedy=each.condition.remedy.format_map(each.values),
            runbook=each.condition.runbook,
            page=each.page,
            doubts_mirror=each.condition.concerns_mirror and each.severity is Severity.PROBLEM,
            because_of=each.because_of,
        )
        for each in measured(health)
    ]


def _explanation(condition: Condition, found: Occurrence, health: Health) -> str | None:
    """Return the name of the condition that holds because something that this one needs does not run, if one does."""
    needs: set[object] = {*condition.needs, *filter(None, [found.values.get("lane")])}
    if needs and health.redis is not None:
        return health.redis.condition
    if needs & set(_idle_lanes(health)):
        return "no_worker"
    return "no_clock" if CLOCK in needs and _no_clock(health) else None


# What the rows measure


def _when(holds: bool, severity: Severity | None = None, **values: object) -> list[Occurrence]:
    return [Occurrence(values, severity)] if holds else []


def _number(number: int, singular: str, plural: str | None = None) -> str:
    return f"1 {singular}" if number == 1 else f"{number} {plural or singular + 's'}"


def _count(number: int, singular: str, plural: str | None = None, **values: object) -> list[Occurrence]:
    """Return that things were found, and how many; nothing for 0."""
    return [Occurrence({"number": _number(number, singular, plural), **values})] if number else []


def _redis(health: Health, *, condition: str) -> list[Occurrence]:
    trouble = health.redis
    return [Occurrence(trouble._asdict())] if trouble is not None and trouble.condition == condition else []


def _idle_lanes(health: Health) -> list[str]:
    """Return the lanes that the settings need and no worker serves; none while Redis is unavailable."""
    return [lane.name for lane in health.lanes if lane.needed and not lane.workers and health.redis is None]


def _no_worker(health: Health) -> list[Occurrence]:
    idle = _idle_lanes(health)
    needed = sum(lane.needed for lane in health.lanes)
    return _when(bool(idle), lanes="" if len(idle) == needed else f" on {', '.join(idle)}")


def _queued_without_worker(health: Health) -> Iterator[Occurrence]:
    for lane in health.lanes:
        if lane.queued and not lane.workers:
            verb = "waits" if lane.queued == 1 else "wait"
            yield Occurrence({"jobs": _number(lane.queued, "job"), "verb": verb, "lane": lane.name})


def _no_clock(health: Health) -> list[Occurrence]:
    age = health.clock_age_seconds
    if age is None:
        return [Occurrence({"since": "the clock has never run"})]
    return _when(age > CLOCK_SECONDS, since=f"the clock has not run for {duration(age)}")


def _backfilling(health: Health) -> list[Occurrence]:
    running = [str(run["id"]) for run in health.runs if run["task"] in ("resync", "catch_up")]
    if not health.repairs:
        remedy = "set WORKOS_API_KEY and WORKOS_CLIENT_ID, so that workos-sync can read everything from WorkOS"
        saw = "the mirror was never filled"
    elif running:
        remedy = f"wait, or see workos-sync runs show {running[0]}"
        saw = "the mirror is not filled yet: the first resync and catch-up have not finished"
    else:
        saw, remedy = "the mirror was never filled", "start workos-sync clock and worker, or up"
    return _when(health.mirror["state"] != "current", saw=saw, remedy=remedy)


def _bound_missed(health: Health) -> list[Occurrence]:
    """Measure the age of the mirror. While it is not filled, `backfilling` says so."""
    age, error, bound = (health.mirror[name] for name in ("age_seconds", "error", "smallest_bound_seconds"))
    old = age is None or not 0 <= age <= bound
    if age is not None and age < 0:
        saw = "the database's clock was set back, so the mirror's age is unknown"
    elif age is None:
        saw = "the newest events were never read, so every bounded answer is stale"
    elif old:
        saw = f"the mirror is {duration(age)} old, so answers with a smaller staleness bound are stale"
    else:
        saw = (
            "an event that may have changed anybody's access failed or expired unread, so every bounded answer is stale"
        )
    return _when(
        (old or health.all_uncertain) and health.repairs and health.mirror["state"] == "current",
        saw=saw,
        why=f" ({error})" if error else "",
        remedy="check that workos-sync worker or up runs, and that WorkOS and Redis answer it"
        if old
        else "a full resync repairs it; the clock starts one within seconds, and a worker carries it out",
    )


def _refused(health: Health, *reasons: str) -> list[Occurrence]:
    """Measure the deliveries refused for these reasons since the last valid one.

    They are a problem if WorkOS's deliveries are certainly among them: no delivery was ever valid with the present
    secrets, or the events API shows that webhooks are missing. Otherwise anybody may have sent them, so that a sender
    who is not WorkOS cannot turn a working installation red.
    """
    counts = {reason: count for reason in reasons if (count := (health.refused or {}).get(reason))}
    certain = not health.secret_verified or health.missed >= MIN_MISSED
    return _when(
        bool(counts),
        Severity.PROBLEM if certain else Severity.WARNING,
        number=_number(sum(counts.values()), "delivery was", "deliveries were"),
        by_reason=", ".join(f"{count} {REASONS.get(reason, reason)}" for reason, count in counts.items()),
    )


def _resync_late(health: Health) -> list[Occurrence]:
    age = health.resync_done_seconds
    return _when(health.repairs and age is not None and age > health.resync_late_seconds, age=duration(age or 0.0))


def _resync_failed(health: Health) -> list[Occurrence]:
    last = health.resync
    if last is None or not health.repairs:
        return []
    return _when(last.status == RunStatus.FAILED, run=last.id, error=last.error)


def _withheld_deletions(health: Health) -> list[Occurrence]:
    last = health.resync
    return [] if last is None else _count(last.withheld, "deletion", run=last.id)


def _drift(health: Health) -> list[Occurrence]:
    last = health.resync
    if last is None or last.drift is None or last.age_seconds > DRIFT_SECONDS:
        return []
    number = sum(count for (_, finding), count in last.drift.items() if finding != "missing")
    return _when(number > MANY_DIFFERENCES, run=last.id, number=number)


def _hook_lagging(health: Health) -> Iterator[Occurrence]:
    for hook in health.hooks:
        if hook.waiting_seconds > OVERDUE_SECONDS or hook.behind > HOOK_BEHIND:
            tried = f", refused {_number(hook.attempts, 'time')}" if hook.attempts else ""
            behind, waited = _number(hook.behind, "change"), duration(hook.waiting_seconds)
            yield Occurrence({"hook": hook.name, "behind": behind, "waited": waited, "tried": tried})


def _joins(health: Health, state: JoinState) -> list[Occurrence]:
    return _count(health.joins.get(state, 0), "join was", "joins were")


def _unmapped_roles(health: Health) -> list[Occurrence]:
    number, slugs = sum(health.unmapped_roles.values()), ", ".join(health.unmapped_roles)
    return _count(number, "membership has", "memberships have", slugs=slugs)


def _certificates(health: Health) -> Iterator[Occurrence]:
    """Measure the certificates that have expired and, as a warning, those that expire within `EXPIRY_DAYS`."""
    for expired, severity, what in ((True, None, "expired"), (False, Severity.WARNING, "will expire soon")):
        if found := [each for each in health.certificates if each.expired is expired]:
            first, number = found[0], _number(len(found), "SAML certificate")
            at = f"{first.expires_at:%Y-%m-%d %H:%M} UTC"
            yield Occurrence({**first._asdict(), "number": number, "what": what, "at": at}, severity)


def _notify_failed(health: Health) -> list[Occurrence]:
    """Measure the targets that fail again and again; a single failure is repeated within seconds."""
    return [
        Occurrence({"target": each.name, "error": each.error, "number": _number(each.attempts, "time")})
        for each in health.notify_failures
        if each.attempts >= MIN_FAILED_SENDS
    ]


def _role_map_withheld(health: Health) -> list[Occurrence]:
    if (withheld := health.withheld_role_map) is None:
        return []
    return [Occurrence(withheld | {"digest": digest_of(withheld["role_map"])})]


CONDITIONS = (
    Condition(
        name="redis_away",
        measured="Redis refuses or does not answer a write.",
        measure=partial(_redis, condition="redis_away"),
        sentence="Redis {saw}",
        notice="Redis cannot be used",
        remedy="{remedy}",
        after=timedelta(minutes=2),
        section="Redis does not answer",
        page="/ops/#workers",
    ),
    Condition(
        name="redis_replica",
        measured="Redis answers a write as a server that is not the primary.",
        measure=partial(_redis, condition="redis_replica"),
        sentence="Redis {saw}",
        notice="Redis is not the primary",
        remedy="{remedy}",
        after=timedelta(minutes=2),
        section="Redis is a replica",
        page="/ops/#workers",
    ),
    Condition(
        name="redis_claimed",
        measured="A clock or worker of another database uses our keys in Redis.",
        measure=partial(_redis, condition="redis_claimed"),
        sentence="{saw}",
        notice="another database uses the same keys in Redis",
        remedy="{remedy}",
        after=timedelta(minutes=2),
        section="Another database uses the same Redis",
        page="/ops/#workers",
    ),
    Condition(
        name="no_worker",
        measured="A lane that the settings need has no worker.",
        measure=_no_worker,
        sentence="no worker is running{lanes}",
        remedy="start workos-sync worker",
        after=timedelta(minutes=2),
        section="No worker is running",
        page="/ops/#workers",
    ),
    Condition(
        name="queued_without_worker",
        measured="Jobs are queued in a lane without a worker.",
        measure=_queued_without_worker,
        sentence="{jobs} {verb} in the lane {lane}, which has no worker",
        subject="lane",
        remedy="give web, clock and worker the same settings, and start workos-sync worker",
        after=timedelta(minutes=2),
        section="No worker is running",
        page="/ops/#workers",
    ),
    Condition(
        name="no_clock",
        measured=f"The clock's last heartbeat is more than {CLOCK_SECONDS} s old, or there was none.",
        measure=_no_clock,
        sentence="{since}",
        remedy="start workos-sync clock, or up, which runs it too",
        after=timedelta(minutes=2),
        section="No clock is running",
        page="/ops/#workers",
    ),
    Condition(
        name="failed_events",
        measured="Events have failed.",
        measure=lambda health: _count(health.failed, "event"),
        sentence="{number} failed",
        remedy="run workos-sync events failures",
        after=timedelta(minutes=5),
        section="Events failed",
        page="/ops/failures",
        page_remedy="review the failures, then replay or dismiss them",
    ),
    Condition(
        name="overdue",
        measured=f"The oldest pending event has waited for more than {OVERDUE_SECONDS} s.",
        measure=lambda health: _when(
            health.oldest_pending_seconds > OVERDUE_SECONDS, waited=duration(health.oldest_pending_seconds)
        ),
        sentence="the oldest pending event has waited for {waited}",
        remedy="check worker and clock",
        after=timedelta(minutes=2),
        section="Events wait too long",
        needs=(DRAIN, CLOCK),
        page="/ops/events?status=pending",
    ),
    Condition(
        name="backfilling",
        measured="The first resync and catch-up have not finished.",
        measure=_backfilling,
        sentence="{saw}",
        notice="the mirror is not filled yet",
        remedy="{remedy}",
        after=timedelta(hours=6),
        section="The mirror is not filled yet",
        needs=(REPAIR, DRAIN, CLOCK),
        page="/ops/runs",
        page_remedy="see the runs; a worker and a clock must run",
    ),
    Condition(
        name="bound_missed",
        measured="The mirror is older than HOLD_BACK_SECONDS + TAIL_SECONDS + 5 s, or all of it is uncertain.",
        measure=_bound_missed,
        sentence="{saw}{why}",
        notice="the mirror is too old for the smallest staleness bound, or all of it is uncertain",
        remedy="{remedy}",
        after=timedelta(minutes=1),
        section="The mirror is too old for the smallest bound",
        needs=(REPAIR,),
        page="/ops/#workers",
    ),
    Condition(
        name="tail_slowed",
        severity=Severity.WARNING,
        measured="The newest events are read less often than every TAIL_SECONDS.",
        measure=lambda health: _when(
            health.tail_interval_seconds > health.tail_seconds,
            interval=duration(health.tail_interval_seconds),
            wanted=duration(health.tail_seconds),
        ),
        sentence="the newest events are read every {interval} instead of {wanted}",
        remedy="raise WORKOS_RATE_SHARE, of which a tenth is used for it, or raise TAIL_SECONDS",
        after=timedelta(minutes=10),
        section="The mirror is too old for the smallest bound",
        page="/ops/#workers",
    ),
    Condition(
        name="silent",
        measured="No webhook has come for longer than usual, although the events API has newer events.",
        measure=lambda health: _when(health.silent_seconds is not None, waited=duration(health.silent_seconds or 0.0)),
        sentence="no webhook for {waited}, although the events API has newer events",
        remedy="run workos-sync doctor; is the endpoint reachable?",
        after=timedelta(minutes=5),
        section="Webhooks stopped",
        page="/ops/events",
    ),
    Condition(
        name="signatures_refused",
        measured="Deliveries with a wrong or missing signature since the last valid delivery.",
        measure=lambda health: _refused(health, "mismatch", "missing"),
        sentence="{number} refused because of the signature since the last valid one ({by_reason})",
        remedy=(
            "set WORKOS_WEBHOOK_SECRETS to the endpoint's secret and restart web; "
            "if it is right, somebody else sends them"
        ),
        after=timedelta(seconds=30),
        section="Signatures are refused",
        page="/ops/#chart",
        milder=True,
    ),
    Condition(
        name="time_refused",
        measured="Correctly signed deliveries refused because of their time since the last valid delivery.",
        measure=lambda health: _refused(health, "time"),
        sentence="{number} refused because of the time in the signature since the last valid one",
        remedy="check this machine's clock with workos-sync doctor, or raise WEBHOOK_TOLERANCE_SECONDS",
        after=timedelta(seconds=30),
        section="Deliveries are refused because of their time",
        page="/ops/#chart",
        milder=True,
    ),
    Condition(
        name="address_refused",
        measured="Deliveries refused by address since the last valid delivery.",
        measure=lambda health: _refused(health, "address"),
        sentence="since the last valid delivery, {number} refused because of the sender's address",
        remedy="compare WEBHOOK_ALLOWED_IPS and TRUSTED_PROXY_HOPS with WorkOS's addresses and your proxies",
        after=timedelta(seconds=30),
        section="Deliveries are refused because of their address",
        page="/ops/#chart",
        milder=True,
    ),
    Condition(
        name="unknown_path",
        measured="Posts with a WorkOS signature to paths that do not exist since the last valid delivery.",
        measure=lambda health: _refused(health, "path"),
        sentence="since the last valid delivery, {number} sent to a path that does not exist",
        remedy="compare the endpoint's URL in WorkOS with WEBHOOK_PATH_TOKEN; workos-sync doctor shows the path",
        after=timedelta(seconds=30),
        section="Deliveries go to a wrong path",
        page="/ops/#chart",
        milder=True,
    ),
    Condition(
        name="withheld_deletions",
        measured="The last full resync withholds deletions that nobody has approved.",
        measure=_withheld_deletions,
        sentence="resync {run} withholds {number}",
        remedy="review them, then run workos-sync resync --approve {run} --reason TEXT",
        after=timedelta(minutes=1),
        section="Deletions are withheld",
        page="/ops/runs/{run}",
        page_remedy="review and approve them",
    ),
    Condition(
        name="resync_late",
        measured="The last successful full resync is older than twice RESYNC_SECONDS.",
        measure=_resync_late,
        sentence="the last successful full resync finished {age} ago",
        remedy="check clock and worker; see workos-sync runs list",
        after=timedelta(minutes=10),
        section="A resync is late",
        needs=(REPAIR, CLOCK),
        page="/ops/runs",
        page_remedy="see the runs; a worker and a clock must run",
    ),
    Condition(
        name="resync_failed",
        severity=Severity.WARNING,
        measured="The last full resync failed.",
        measure=_resync_failed,
        sentence="resync {run} failed: {error}",
        notice="resync {run} failed",
        remedy="run workos-sync resync",
        after=timedelta(minutes=10),
        section="A resync failed",
        page="/ops/runs/{run}",
        page_remedy="see why, then start another resync",
    ),
    Condition(
        name="hook_failed",
        measured="A hook refused deliveries HOOK_ATTEMPTS times.",
        measure=lambda health: [
            Occurrence({"deliveries": _number(hook.failed, "delivery", "deliveries"), "hook": hook.name})
            for hook in health.hooks
            if hook.failed
        ],
        sentence="{deliveries} to the hook {hook} failed",
        subject="hook",
        remedy="run workos-sync hooks failed {hook}",
        after=timedelta(minutes=5),
        section="A hook failed, missed changes, or is unsupported",
        page="/ops/hooks",
        page_remedy="retry or dismiss them",
        concerns_mirror=False,
    ),
    Condition(
        name="hook_missed",
        measured="A hook missed changes that retention deleted.",
        measure=lambda health: [
            Occurrence({"hook": hook.name, "why": hook.missed}) for hook in health.hooks if hook.missed
        ],
        sentence="the hook {hook} missed changes: {why}",
        notice="the hook {hook} missed changes",
        subject="hook",
        remedy="have your product read the current state",
        after=timedelta(minutes=5),
        section="A hook failed, missed changes, or is unsupported",
        page="/ops/hooks",
        concerns_mirror=False,
    ),
    Condition(
        name="hook_unsupported",
        measured="HOOKS names a Python function, which is not called.",
        measure=lambda health: [Occurrence({"hook": name}) for name in health.python_hooks],
        sentence="the hook {hook} is a Python function and is not called",
        subject="hook",
        remedy="give it an https:// URL",
        after=timedelta(minutes=5),
        section="A hook failed, missed changes, or is unsupported",
        page="/ops/hooks",
        concerns_mirror=False,
    ),
    Condition(
        name="hook_lagging",
        severity=Severity.WARNING,
        measured=f"A change has waited for a hook for more than {OVERDUE_SECONDS} s, or more than {HOOK_BEHIND} wait.",
        measure=_hook_lagging,
        sentence="the hook {hook} is {behind} behind, and the oldest has waited for {waited}{tried}",
        subject="hook",
        remedy="run workos-sync hooks list; does the receiver answer?",
        after=timedelta(minutes=10),
        section="A hook is behind",
        needs=(HOOKS,),
        page="/ops/hooks",
        page_remedy="see its deliveries; does the receiver answer?",
    ),
    Condition(
        name="join_undone",
        severity=Severity.WARNING,
        measured="Joins were undone.",
        measure=partial(_joins, state=JoinState.UNDONE),
        sentence="{number} undone because an inactive membership had been reactivated",
        remedy="run workos-sync auto-join joins --state undone",
        after=timedelta(minutes=1),
        section="A join failed or was undone",
        page="/ops/auto-join?show=joins&state=undone",
        page_remedy="see the joins",
    ),
    Condition(
        name="join_failed",
        severity=Severity.WARNING,
        measured="Memberships could not be created, as WorkOS refused them or ROLE_MAP has no WorkOS role.",
        measure=partial(_joins, state=JoinState.FAILED),
        sentence="{number} not carried out: WorkOS refused, or ROLE_MAP has no WorkOS role",
        remedy="run workos-sync auto-join joins --state failed",
        after=timedelta(minutes=1),
        section="A join failed or was undone",
        page="/ops/auto-join?show=joins&state=failed",
        page_remedy="see the joins",
    ),
    Condition(
        name="sessions_not_revoked",
        measured=f"The oldest pending revocation of sessions has waited for more than {REVOCATION_SECONDS} s.",
        measure=lambda health: _when(
            health.revocation_waiting_seconds > REVOCATION_SECONDS,
            number=_number(health.revocations.get(RevocationState.PENDING, 0), "person", "people"),
            waited=duration(health.revocation_waiting_seconds),
            why=f" ({health.revocation_error})" if health.revocation_error else "",
        ),
        sentence="sessions of {number} without access may not have ended, and the oldest has waited for {waited}{why}",
        notice="sessions of {number} without access may not have ended, and the oldest has waited for {waited}",
        remedy="start workos-sync worker, or check whether WorkOS answers it; workos-sync explain shows each person",
        after=timedelta(minutes=1),
        section="Sessions are not revoked",
        needs=(SESSIONS,),
        page="/ops/#workers",
        concerns_mirror=False,
    ),
    Condition(
        name="unread_objects",
        severity=Severity.WARNING,
        measured="Confirmed reads have failed five or more times.",
        measure=lambda health: _count(
            health.unread, "object", example=health.first_unread, id=(health.first_unread or "").rpartition(" ")[2]
        ),
        sentence="{number} cannot be read from WorkOS, such as {example}",
        notice="{number} cannot be read from WorkOS",
        remedy="run workos-sync explain ID",
        after=timedelta(minutes=30),
        section="Objects cannot be read",
        page="/ops/explain?name={id}",
        page_remedy="see what is known about it",
    ),
    Condition(
        name="domain_conflicts",
        severity=Severity.WARNING,
        measured="A domain is verified for several live workspaces.",
        measure=lambda health: _count(
            health.conflicts, "domain is", "domains are", them="it" if health.conflicts == 1 else "them"
        ),
        sentence="{number} verified for several workspaces, so nobody joins by {them}",
        remedy="run workos-sync auto-join domains --off",
        after=timedelta(hours=1),
        section="Two workspaces hold one domain",
        page="/ops/auto-join?show=domains",
        page_remedy="see the domains",
    ),
    Condition(
        name="unmapped_roles",
        severity=Severity.WARNING,
        measured="Memberships have a role that is not in ROLE_MAP.",
        measure=_unmapped_roles,
        sentence="{number} a role that is not in ROLE_MAP and counts as member: {slugs}",
        notice="{number} a role that is not in ROLE_MAP and counts as member",
        remedy="add the roles to ROLE_MAP and restart the worker",
        after=timedelta(hours=1),
        section="Roles are not mapped",
    ),
    Condition(
        name="certificate_expires",
        measured=f"A SAML certificate of a connection in use has expired, or will within {EXPIRY_DAYS} days.",
        measure=_certificates,
        sentence="{number} {what}, the first at {at}: {type} of {connection_id}",
        notice="{number} {what}",
        remedy="have the workspace renew it in its identity provider and in WorkOS, or its people cannot sign in",
        after=timedelta(minutes=2),
        milder_after=timedelta(hours=1),
        section="A sign-in certificate expires",
        page="/ops/explain?name={connection_id}",
        milder=True,
        concerns_mirror=False,
    ),
    Condition(
        name="role_map_withheld",
        severity=Severity.WARNING,
        measured="A new ROLE_MAP would promote too many members, and waits for approval.",
        measure=_role_map_withheld,
        sentence="ROLE_MAP would make {promotions} of {members} members admins, but promotes nobody until approved",
        remedy="review it with workos-sync plan, then run workos-sync plan --approve {digest} --reason TEXT",
        after=timedelta(minutes=1),
        section="A role map waits for approval",
        page="/ops/#role-map",
        page_remedy="review and approve it",
    ),
    Condition(
        name="notify_failed",
        severity=Severity.WARNING,
        measured=f"A target of NOTIFY has not accepted a message {MIN_FAILED_SENDS} times in a row.",
        measure=_notify_failed,
        sentence="notifications to {target} failed {number}: {error}",
        notice="notifications to {target} failed {number}",
        subject="target",
        remedy="run workos-sync notify test, then correct NOTIFY and restart clock and worker",
        after=timedelta(minutes=5),
        section="Notifications are not delivered",
        concerns_mirror=False,
    ),
    Condition(
        name="missed_webhooks",
        severity=Severity.WARNING,
        measured=f"More than {MANY_GAPS} events of the last hour came only from the events API.",
        measure=lambda health: _when(health.recent_gaps > MANY_GAPS, number=health.recent_gaps),
        sentence="{number} events of the last hour came without a webhook",
        remedy="run workos-sync doctor; does the endpoint answer in time, and is it subscribed to all event types?",
        after=timedelta(minutes=1),
        section="Some events came only from the events API",
        page="/ops/events",
    ),
    Condition(
        name="drift",
        severity=Severity.WARNING,
        measured=(
            f"A full resync of the last hour found more than {MANY_DIFFERENCES} differences, apart from new objects."
        ),
        measure=_drift,
        sentence="resync {run} found {number} differences, apart from new objects",
        remedy="run workos-sync runs show {run}",
        after=timedelta(minutes=1),
        section="A resync found much drift",
        page="/ops/runs/{run}",
        page_remedy="see the differences",
    ),
)
