"""GET /metrics for Prometheus.

Counters come from Redis and gauges from the database, so every web process returns the same metrics.
"""

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

from flask import Blueprint, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from redis.exceptions import RedisError

from models.database import DATABASE_ERRORS
from models.tables import JoinState, RevocationState
from worker.bootstrap import Services
from worker.error_handling import is_expected
from worker.kinds import READERS
from worker.metrics import (
    ACCEPTED_TO_APPLIED,
    BUCKETS,
    INFINITY,
    LOST_TO_REVOKED,
    REFUSALS,
    REVOCATION_FAILURES,
    UNEXPECTED,
    Name,
    Place,
    counted,
    noted,
)
from worker.redis_client import require_writable
from worker.reports.conditions import CONDITIONS
from worker.reports.health import Health
from worker.reports.verdict import Verdict, judge

LabelValues = TypeVar("LabelValues", bound=str | tuple[str, ...])

LABEL = re.compile(r"[A-Za-z0-9._:-]{1,64}")
MAX_SERIES = 20
OTHER = "other"

COUNTERS: dict[str, tuple[str, str, tuple[tuple[str, tuple[str, ...]], ...]]] = {
    "received": (
        "webhooks_received",
        "Deliveries with a valid signature.",
        (("outcome", ("accepted", "duplicate", "not_stored")), ("type", (*READERS, "other"))),
    ),
    "refused": (
        "webhooks_refused",
        "Deliveries rejected by address, path, signature or time.",
        (("reason", REFUSALS),),
    ),
    UNEXPECTED: (
        "unexpected_errors",
        "Errors that no code expected, logged as unexpected_error, except those of runs and confirmed reads.",
        (("place", tuple(Place)),),
    ),
    REVOCATION_FAILURES: ("revocation_failures", "Attempts to revoke a person's sessions that failed.", ()),
    "workos_calls": ("workos_calls", "Calls to the WorkOS API.", ()),
    "workos_limited": ("workos_limited", "Calls to the WorkOS API that were answered with 429.", ()),
}
"""Name, help text, and labels with their values, of each counter of `worker.metrics`.

The series of these values start at 0: Prometheus sees no increase when a series first appears above 0.
"""
HISTOGRAMS = {
    ACCEPTED_TO_APPLIED: "Seconds from storing an event to applying it, commit to commit.",
    LOST_TO_REVOKED: "Seconds from the time of the event that ended a person's access to the end of their sessions.",
}


def blueprint(services: Services) -> Blueprint:
    """Return the route `/metrics`."""
    routes = Blueprint("metrics", __name__)
    registry = CollectorRegistry()
    registry.register(_Metrics(services))

    @routes.get("/metrics")
    def metrics() -> Response:
        services.counters.hand_over()
        return Response(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)

    return routes


class _Metrics(Collector):
    """Reads all metrics on each scrape."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def describe(self) -> Iterable[Metric]:
        """Return nothing, because the set of metrics depends on the data."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics. If Redis or the database is unavailable, yield only its `up` metric."""
        for name, part in (("redis", self._from_redis), ("database", self._from_database)):
            try:
                yield from part()
            except Exception as error:
                if is_expected(error):
                    raise
                self._services.counters.report(Place.METRICS, name, error)

    def _from_redis(self) -> Iterator[Metric]:
        redis_up = "1 if Redis is available and writable."
        try:
            require_writable(self._services.report_redis)
            counts, times = counted(self._services.report_redis), noted(self._services.report_redis)
        except RedisError:
            yield _gauge("redis_up", redis_up, 0)
        else:
            yield _gauge("redis_up", redis_up, 1)
            yield from _counter_metrics(counts, times)

    def _from_database(self) -> Iterator[Metric]:
        database_up = "1 if the database is available."
        try:
            verdict = judge(self._services.engine, self._services.report_redis, self._services.settings)
        except DATABASE_ERRORS as error:
            if not is_expected(error):
                raise
            yield _gauge("database_up", database_up, 0)
        else:
            yield _gauge("database_up", database_up, 1)
            yield from _health_metrics(verdict)


def _counter_metrics(counts: Mapping[Name, float], times: Mapping[Name, float]) -> Iterator[Metric]:
    for key, (name, text, labels) in COUNTERS.items():
        counter = CounterMetricFamily(f"workos_sync_{name}", text, labels=[label for label, _ in labels])
        initial = dict.fromkeys(itertools.product(*(values for _, values in labels)), 0.0)
        found = ((name.labels, number) for name, number in counts.items() if name.name == key)
        series = initial | {values: number for values, number in found if len(values) == len(labels)}
        for values, number in sorted(series.items()):
            counter.add_metric(values, number)
        yield counter
    yield _gauge(
        "webhook_secret_used_timestamp_seconds",
        "When the secret at this position in WORKOS_WEBHOOK_SECRETS last verified a delivery.",
        {key.labels: at for key, at in sorted(times.items()) if key.name == "secret_used" and len(key.labels) == 1},
        "place",
    )
    for name, text in HISTOGRAMS.items():
        histogram = HistogramMetricFamily(f"workos_sync_{name}_seconds", text)
        buckets, total = [], 0.0
        for upper in (*map(str, BUCKETS), INFINITY):
            total += counts.get(Name(f"{name}_bucket", (upper,)), 0.0)
            buckets.append((upper, total))
        histogram.add_metric((), buckets, counts.get(Name(f"{name}_sum"), 0.0))
        yield histogram


def _gauge(name: str, text: str, value: float | Mapping[LabelValues, float], *labels: str) -> Metric:
    """Return a gauge.

    Args:
        name: without the prefix `workos_sync_`.
        text: the help text.
        value: with labels, the value of each series by its label value, or by a tuple if there are several labels.
        labels: label names.
    """
    family = GaugeMetricFamily(f"workos_sync_{name}", text, labels=labels)
    if not isinstance(value, Mapping):
        family.add_metric((), value)
        return family
    for key, number in value.items():
        family.add_metric((key,) if isinstance(key, str) else key, number)
    return family


def _bounded(numbers: Mapping[str, int]) -> dict[str, int]:
    """Return the largest numbers by label, and the sum of all others as `other`: customers of WorkOS choose slugs."""
    largest = sorted(filter(LABEL.fullmatch, numbers), key=lambda label: (-numbers[label], label))
    kept = {label: numbers[label] for label in largest[:MAX_SERIES]}
    rest = sum(numbers.values()) - sum(kept.values())
    return kept | ({OTHER: kept.get(OTHER, 0) + rest} if rest else {})


def _health_metrics(verdict: Verdict) -> Iterator[Metric]:
    health = verdict.health
    now = {(each.name, each.severity.value) for each in verdict.conditions}
    every = ((condition.name, severity.value) for condition in CONDITIONS for severity in condition.severities)
    problems = {key: key in now for key in every}
    yield _gauge("trusted", "1 if the mirror is trustworthy.", verdict.trusted)
    yield _gauge("backfilling", "1 until the first resync and catch-up are done.", health.mirror["state"] != "current")
    yield _gauge("problem", "1 if status reports this condition.", problems, "name", "severity")
    seconds = health.mirror["age_seconds"]
    yield _gauge(
        "complete_age_seconds",
        "Age of complete_to, up to which every event is applied; +Inf before the first read.",
        math.inf if seconds is None else seconds,
    )
    yield _gauge("smallest_bound_seconds", "Smallest staleness bound.", health.mirror["smallest_bound_seconds"])
    yield _gauge(
        "tail_interval_seconds", "Interval between two reads of the newest events.", health.tail_interval_seconds
    )
    yield _gauge("late_events", "Events that the events API showed later than HOLD_BACK_SECONDS.", health.late_events)
    yield _gauge("uncertain_events", "Events that failed and may have changed access.", health.uncertain)
    yield _gauge("events_pending", "Events waiting to be applied, up to 10,000.", health.pending)
    yield _gauge("oldest_pending_seconds", "Age of the oldest pending event.", health.oldest_pending_seconds)
    yield _gauge("events_failed", "Failed events, up to 10,000.", health.failed)
    failed = _bounded(health.failed_by_fingerprint)
    yield _gauge("events_failed_by_error", "Failed events by fingerprint of their error.", failed, "fingerprint")
    yield _gauge("gaps", "Events that came only from the events API, without a webhook.", health.gaps)
    yield _gauge("late_webhooks", "Events whose webhook came long after the events API had them.", health.late)
    yield _gauge("silent_seconds", "Time since the last webhook if one is overdue, else 0.", health.silent_seconds or 0)
    yield _gauge("auto_join_conflicts", "Domains verified for several live workspaces.", health.conflicts)
    unmapped = _bounded(health.unmapped_roles)
    yield _gauge("unmapped_roles", "Memberships whose role slug is not in ROLE_MAP.", unmapped, "slug")
    yield _gauge("domains", "Domains by auto-join state.", dict(sorted(health.domains.items())), "state")
    joins = {state.value: health.joins.get(state, 0) for state in JoinState}
    yield _gauge("joins", "Joins by domain, by state.", joins, "state")
    yield from _revocation_metrics(health)
    if health.missing_joins is not None and health.without_admin is not None:
        yield _gauge("missing_joins", "People who should be members by domain and are not.", health.missing_joins)
        yield _gauge("workspaces_without_admin", "Workspaces with members but no admin.", health.without_admin)
    hooks = health.hooks
    behind = {hook.name: hook.behind for hook in hooks}
    yield _gauge("hook_behind", "Changes not yet delivered to a hook, counted up to 10,000.", behind, "hook")
    yield _gauge("hook_failed", "Failed deliveries of a hook.", {h.name: h.failed for h in hooks}, "hook")
    waiting = {hook.name: hook.waiting_seconds for hook in hooks}
    yield _gauge("hook_waiting_seconds", "Age of the oldest change not yet delivered to a hook.", waiting, "hook")
    if last := health.resync:
        yield _gauge("resync_seconds", "Duration of the last full resync that finished.", last.seconds)
        yield _gauge("resync_age_seconds", "Time since the last full resync finished.", last.age_seconds)
        if last.drift is not None:
            yield _gauge("drift", "Differences found by the last full resync.", last.drift, "kind", "finding")
        yield _gauge("withheld_deletions", "Deletions withheld by the last full resync, not approved.", last.withheld)
    age = math.inf if health.clock_age_seconds is None else health.clock_age_seconds
    yield _gauge("clock_age_seconds", "Time since the last heartbeat of a clock; +Inf if there was none.", age)
    workers = {lane.name: len(lane.workers) for lane in health.lanes if lane.workers is not None}
    queued = {lane.name: lane.queued for lane in health.lanes if lane.queued is not None}
    yield _gauge("workers", "Worker processes by lane.", workers, "lane")
    yield _gauge("queued_jobs", "Queued jobs by lane.", queued, "lane")


def _revocation_metrics(health: Health) -> Iterator[Metric]:
    revoked = "Sessions of people who lost access that were revoked."
    yield CounterMetricFamily("workos_sync_sessions_revoked", revoked, value=health.sessions_revoked)
    revocations = {state.value: health.revocations.get(state, 0) for state in RevocationState}
    yield _gauge("revocations", "Revocations of a person's sessions, by state.", revocations, "state")
    waiting = health.revocation_waiting_seconds
    yield _gauge("revocation_waiting_seconds", "Age of the oldest pending revocation.", waiting)
