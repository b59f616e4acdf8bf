"""GET /metrics for Prometheus.

Counters come from Redis and gauges from the database, so every web process returns the same metrics.
"""

import math
from collections.abc import Iterable, Iterator

from flask import Blueprint, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from redis.exceptions import RedisError
from sqlalchemy.exc import DBAPIError

from models.tables import JoinState
from worker.bootstrap import Services
from worker.kinds import READERS
from worker.metrics import ACCEPTED_TO_APPLIED, BUCKETS, INFINITY, Name, counted, noted
from worker.redis_client import require_writable
from worker.reports.health import PROBLEMS, WARNINGS, Health, check_health

ALL = (*PROBLEMS, *WARNINGS)
COUNTERS = {
    "received": ("webhooks_received", "Deliveries with a valid signature.", ("outcome", "type")),
    "refused": ("webhooks_refused", "Deliveries rejected by address or signature.", ("reason",)),
    "workos_calls": ("workos_calls", "Calls to the WorkOS API.", ()),
    "workos_limited": ("workos_limited", "Calls to the WorkOS API that were answered with 429.", ()),
}
INITIAL_LABELS: dict[str, list[tuple[str, ...]]] = {
    "received": [
        (outcome, type) for outcome in ("accepted", "duplicate", "not_stored") for type in (*READERS, "other")
    ],
    "refused": [(reason,) for reason in ("address", "missing", "mismatch", "time")],
    "workos_calls": [()],
    "workos_limited": [()],
}
"""Series that start at 0: Prometheus sees no increase when a series first appears with a value above 0."""
TIMES = {
    "secret_used": (
        "webhook_secret_used_timestamp_seconds",
        "When the secret at this position in WORKOS_WEBHOOK_SECRETS last verified a delivery.",
        ("place",),
    ),
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
        yield from self._counters()
        try:
            health = check_health(self._services.engine, self._services.redis, self._services.settings)
        except DBAPIError:
            yield gauge("database_up", "1 if the database is available.", 0)
            return
        yield gauge("database_up", "1 if the database is available.", 1)
        yield from health_metrics(health)

    def _counters(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("workos_sync_redis_up", "1 if Redis is available and writable.")
        try:
            require_writable(self._services.redis)
            counts, times = counted(self._services.redis), noted(self._services.redis)
        except RedisError:
            up.add_metric((), 0)
            yield up
            return
        up.add_metric((), 1)
        yield up
        for key, (name, text, labels) in COUNTERS.items():
            counter = CounterMetricFamily(f"workos_sync_{name}", text, labels=labels)
            for values, number in sorted((dict.fromkeys(INITIAL_LABELS[key], 0.0) | _by_labels(counts, key)).items()):
                counter.add_metric(values, number)
            yield counter
        for key, (name, text, labels) in TIMES.items():
            last = GaugeMetricFamily(f"workos_sync_{name}", text, labels=labels)
            for values, at in sorted(_by_labels(times, key).items()):
                last.add_metric(values, at)
            yield last
        yield _histogram(counts)


def _by_labels(values: dict[Name, float], name: str) -> dict[tuple[str, ...], float]:
    return {key.labels: value for key, value in values.items() if key.name == name}


def _histogram(counts: dict[Name, float]) -> HistogramMetricFamily:
    """Return the histogram, with cumulative buckets."""
    text = "Seconds from storing an event to applying it, commit to commit."
    family = HistogramMetricFamily("workos_sync_accepted_to_applied_seconds", text)
    buckets, total = [], 0.0
    for upper in (*map(str, BUCKETS), INFINITY):
        total += counts.get(Name(f"{ACCEPTED_TO_APPLIED}_bucket", (upper,)), 0.0)
        buckets.append((upper, total))
    family.add_metric((), buckets, counts.get(Name(f"{ACCEPTED_TO_APPLIED}_sum"), 0.0))
    return family


def gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    """Return a gauge without labels."""
    return GaugeMetricFamily(f"workos_sync_{name}", text, value=value)


def labelled(name: str, text: str, labels: Iterable[str], values: Iterable[tuple[Iterable[str], float]]) -> Metric:
    """Return a gauge with labels.

    Args:
        name: without the prefix `workos_sync_`.
        text: the help text.
        labels: label names.
        values: label values and value of each series.
    """
    family = GaugeMetricFamily(f"workos_sync_{name}", text, labels=tuple(labels))
    for names, value in values:
        family.add_metric(tuple(names), value)
    return family


def health_metrics(health: Health) -> Iterator[Metric]:
    """Yield `health` as gauges."""
    found = {problem.name for problem in (*health.problems, *health.warnings)}
    yield gauge("trusted", "1 if the mirror is trustworthy.", health.trusted)
    yield gauge("backfilling", "1 until the first resync and catch-up are done.", health.mirror["state"] != "current")
    yield labelled(
        "problem",
        "1 if status reports this problem or warning.",
        ("name",),
        (((name,), name in found) for name in ALL),
    )
    yield gauge("events_pending", "Events waiting to be applied, up to 10,000.", health.pending)
    yield gauge("oldest_pending_seconds", "Age of the oldest pending event.", health.oldest_pending_seconds)
    yield gauge("events_failed", "Failed events, up to 10,000.", health.failed)
    failed = (((name,), number) for name, number in health.failed_by_fingerprint.items())
    yield labelled("events_failed_by_error", "Failed events by fingerprint of their error.", ("fingerprint",), failed)
    yield gauge("gaps", "Events that came only from the events API, without a webhook.", health.gaps)
    yield gauge("late_webhooks", "Events whose webhook came long after the events API had them.", health.late)
    yield gauge("silent_seconds", "Time since the last webhook if one is overdue, else 0.", health.silent_seconds or 0)
    yield gauge("auto_join_conflicts", "Domains verified for several live workspaces.", health.conflicts)
    roles = (((slug,), number) for slug, number in health.unmapped_roles.items())
    yield labelled("unmapped_roles", "Memberships whose role slug is not in ROLE_MAP.", ("slug",), roles)
    yield from _auto_join_metrics(health)
    yield from _resync_metrics(health)
    yield from _worker_metrics(health)


def _auto_join_metrics(health: Health) -> Iterator[Metric]:
    states = (((state,), number) for state, number in sorted(health.domains.items()))
    yield labelled("domains", "Domains by auto-join state.", ("state",), states)
    joins = (((state.value,), health.joins.get(state, 0)) for state in JoinState)
    yield labelled("joins", "Joins by domain, by state.", ("state",), joins)
    yield gauge("missing_joins", "People who should be members by domain and are not.", health.missing_joins)
    yield gauge("workspaces_without_admin", "Workspaces with members but no admin.", health.without_admin)
    for name, text in (("behind", "Changes not yet delivered to a hook."), ("failed", "Failed deliveries of a hook.")):
        values = (((hook["hook"],), hook[name] or 0) for hook in health.hooks)
        yield labelled(f"hook_{name}", text, ("hook",), values)


def _resync_metrics(health: Health) -> Iterator[Metric]:
    last = health.resync
    if last is None:
        return
    yield gauge("resync_seconds", "Duration of the last full resync that finished.", last.seconds)
    yield gauge("resync_age_seconds", "Time since the last full resync finished.", last.age_seconds)
    drift = (((kind, finding), number) for (kind, finding), number in last.drift.items())
    yield labelled("drift", "Differences found by the last full resync.", ("kind", "finding"), drift)
    yield gauge("withheld_deletions", "Deletions withheld by the last full resync and not approved.", last.withheld)


def _worker_metrics(health: Health) -> Iterator[Metric]:
    age = math.inf if health.clock_age_seconds is None else health.clock_age_seconds
    yield gauge("clock_age_seconds", "Time since the last heartbeat of a clock; +Inf if there was none.", age)
    known = [lane for lane in health.lanes if lane.workers is not None and lane.queued is not None]
    workers = (((lane.name,), len(lane.workers or ())) for lane in known)
    yield labelled("workers", "Worker processes by lane.", ("lane",), workers)
    yield labelled(
        "queued_jobs", "Queued jobs by lane.", ("lane",), (((lane.name,), lane.queued or 0) for lane in known)
    )
