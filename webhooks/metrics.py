"""GET /metrics, for Prometheus: counts of all processes from Redis, and how things stand from the database.

Any web process answers for all: none of it is kept in the process that is asked.
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
from worker.decision.handlers import HANDLERS
from worker.metrics import ACCEPTED_TO_APPLIED, BUCKETS, MORE, Name, counted, noted
from worker.redis_client import require_writable
from worker.reports.health import PROBLEMS, WARNINGS, Health, check_health

ALL = (*PROBLEMS, *WARNINGS)
COUNTERS = {
    "received": ("webhooks_received", "Webhooks that were well signed.", ("outcome", "type")),
    "refused": ("webhooks_refused", "Deliveries refused before they were read.", ("reason",)),
    "workos_calls": ("workos_calls", "Calls to WorkOS's API.", ()),
    "workos_limited": ("workos_limited", "Calls that WorkOS answered with 429.", ()),
}
FROM_THE_START: dict[str, list[tuple[str, ...]]] = {
    "received": [
        (outcome, type) for outcome in ("accepted", "duplicate", "not_stored") for type in (*HANDLERS, "other")
    ],
    "refused": [(reason,) for reason in ("address", "missing", "mismatch", "time")],
    "workos_calls": [()],
    "workos_limited": [()],
}
"""Shown as 0 until they happen: Prometheus sees no increase in a series that begins above 0."""
TIMES = {
    "secret_used": (
        "webhook_secret_used_timestamp_seconds",
        "When a secret (by its place in WORKOS_WEBHOOK_SECRETS) last verified a delivery.",
        ("place",),
    ),
}


def blueprint(services: Services) -> Blueprint:
    """Return `/metrics`."""
    routes = Blueprint("metrics", __name__)
    registry = CollectorRegistry()
    registry.register(_Metrics(services))

    @routes.get("/metrics")
    def metrics() -> Response:
        services.counters.hand_over()
        return Response(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)

    return routes


class _Metrics(Collector):
    """Reads all metrics anew each time."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def describe(self) -> Iterable[Metric]:
        """Return nothing: what there is depends on what happened."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield what can be read now; Redis or the database away is itself a metric."""
        yield from self._counts()
        try:
            health = check_health(self._services.engine, self._services.redis, self._services.settings)
        except DBAPIError:
            yield gauge("database_up", "Whether the database answers.", 0)
            return
        yield gauge("database_up", "Whether the database answers.", 1)
        yield from health_metrics(health)

    def _counts(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("workos_sync_redis_up", "Whether Redis answers and takes writes.")
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
            for values, number in sorted((dict.fromkeys(FROM_THE_START[key], 0.0) | _of(counts, key)).items()):
                counter.add_metric(values, number)
            yield counter
        for key, (name, text, labels) in TIMES.items():
            last = GaugeMetricFamily(f"workos_sync_{name}", text, labels=labels)
            for values, at in sorted(_of(times, key).items()):
                last.add_metric(values, at)
            yield last
        yield _histogram(counts)


def _of(found: dict[Name, float], name: str) -> dict[tuple[str, ...], float]:
    return {key.labels: value for key, value in found.items() if key.name == name}


def _histogram(counts: dict[Name, float]) -> HistogramMetricFamily:
    """Return the histogram, its buckets cumulative as Prometheus wants them."""
    text = "Seconds from the commit of an event in the inbox to the commit of what it changed."
    family = HistogramMetricFamily("workos_sync_accepted_to_applied_seconds", text)
    buckets, total = [], 0.0
    for end in (*map(str, BUCKETS), MORE):
        total += counts.get(Name(f"{ACCEPTED_TO_APPLIED}_bucket", (end,)), 0.0)
        buckets.append((end, total))
    family.add_metric((), buckets, counts.get(Name(f"{ACCEPTED_TO_APPLIED}_sum"), 0.0))
    return family


def gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    """Return a gauge without labels."""
    return GaugeMetricFamily(f"workos_sync_{name}", text, value=value)


def labelled(name: str, text: str, labels: Iterable[str], values: Iterable[tuple[Iterable[str], float]]) -> Metric:
    """Return a gauge with labels: label values and value of each series."""
    family = GaugeMetricFamily(f"workos_sync_{name}", text, labels=tuple(labels))
    for names, value in values:
        family.add_metric(tuple(names), value)
    return family


def health_metrics(health: Health) -> Iterator[Metric]:
    """Yield how things stand, as gauges."""
    found = {problem.name for problem in (*health.problems, *health.warnings)}
    yield gauge("trusted", "1 if the mirror is known to be right.", health.trusted)
    yield gauge("backfilling", "1 until the first resync and catch-up are done.", health.mirror["state"] != "current")
    yield labelled(
        "problem",
        "1 for what status calls a problem or a warning.",
        ("name",),
        (((name,), name in found) for name in ALL),
    )
    yield gauge("events_pending", "Events that wait to be applied (counted to 10,000).", health.pending)
    yield gauge("oldest_pending_seconds", "Age of the oldest of them.", health.oldest_pending_seconds)
    yield gauge("events_failed", "Events set aside as failed (counted to 10,000).", health.failed)
    failed = (((name,), number) for name, number in health.failed_by_fingerprint.items())
    yield labelled("events_failed_by_error", "Failed events by fingerprint of the error.", ("fingerprint",), failed)
    yield gauge("gaps", "Events that only the events API brought.", health.gaps)
    yield gauge("late_webhooks", "Events whose webhook came long after the events API had them.", health.late)
    yield gauge("silent_seconds", "How long no webhook came while one should have; else 0.", health.silent_seconds or 0)
    yield gauge("auto_join_conflicts", "Domains that several live workspaces hold verified.", health.conflicts)
    roles = (((slug,), number) for slug, number in health.unmapped_roles.items())
    yield labelled("unmapped_roles", "Live memberships whose role slug no ROLE_MAP names.", ("slug",), roles)
    yield from _of_joining(health)
    yield from _of_resync(health)
    yield from _of_work(health)


def _of_joining(health: Health) -> Iterator[Metric]:
    states = (((state,), number) for state, number in sorted(health.domains.items()))
    yield labelled("domains", "Domains by auto-join state.", ("state",), states)
    joins = (((state.value,), health.joins.get(state, 0)) for state in JoinState)
    yield labelled("joins", "People made, or to be made, members by their domain.", ("state",), joins)
    yield gauge("missing_joins", "People who should be in a workspace by domain and are not.", health.missing_joins)
    yield gauge("workspaces_without_admin", "Workspaces with members and no admin.", health.without_admin)
    for name, text in (("behind", "Changes a hook was not told of yet."), ("failed", "Changes a hook failed at.")):
        told = (((hook["hook"],), hook[name] or 0) for hook in health.hooks)
        yield labelled(f"hook_{name}", text, ("hook",), told)


def _of_resync(health: Health) -> Iterator[Metric]:
    last = health.resync
    if last is None:
        return
    yield gauge("resync_seconds", "Duration of the last full resync that ended.", last.seconds)
    yield gauge("resync_age_seconds", "How long ago it ended.", last.age_seconds)
    drift = (((kind, finding), number) for (kind, finding), number in last.drift.items())
    yield labelled("drift", "What it found different.", ("kind", "finding"), drift)
    yield gauge("withheld_deletions", "Deletions it withheld and nobody has approved.", last.withheld)


def _of_work(health: Health) -> Iterator[Metric]:
    age = math.inf if health.clock_age_seconds is None else health.clock_age_seconds
    yield gauge("clock_age_seconds", "How long ago a clock gave a sign of life; +Inf: never.", age)
    known = [lane for lane in health.lanes if lane.workers is not None and lane.queued is not None]
    workers = (((lane.name,), len(lane.workers or ())) for lane in known)
    yield labelled("workers", "Worker processes of a lane.", ("lane",), workers)
    yield labelled(
        "queued_jobs", "Jobs queued in a lane.", ("lane",), (((lane.name,), lane.queued or 0) for lane in known)
    )
