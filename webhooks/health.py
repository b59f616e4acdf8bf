"""Health checks: whether the process is alive, and whether it can commit an event."""

import threading
from functools import partial

from flask import Blueprint, Response, jsonify

from models.database import DATABASE_ERRORS, reconnecting
from models.revisions import outdated
from worker.bootstrap import Services
from worker.inbox.store import probe
from worker.metrics import Place
from worker.reports.verdict import Cached, Verdict, judge

CACHE_SECONDS = 5.0
"""Maximum age of the warnings that `/readyz` returns, also of a failure to find them: load balancers call it often."""


def blueprint(services: Services) -> Blueprint:
    """Return the routes `/healthz` and `/readyz`."""
    routes = Blueprint("health", __name__)
    probing = threading.Lock()  # At most one: the inbox's other connection commits deliveries.
    migrated = threading.Event()

    def judge_unless_failing() -> Verdict | None:
        """Return the verdict; None after any error, which is reported: deliveries may still be committed."""
        found: Verdict | None = None
        with services.counters.contained(Place.READINESS, "warnings"):
            found = judge(services.engine, services.report_redis, services.settings)
        return found  # noqa: RET504 - None after an error

    verdict = Cached(judge_unless_failing, CACHE_SECONDS)

    @routes.get("/healthz")
    def healthz() -> Response:
        return jsonify(status="alive")

    @routes.get("/readyz")
    def readyz() -> Response | tuple[Response, int]:
        """Return 200 if an event can be committed. Nothing else decides it: other problems are warnings."""
        try:
            with probing:
                if not migrated.is_set():
                    if reconnecting(partial(outdated, services.inbox_engine)):
                        return jsonify(status="not ready", reason="the database is not migrated"), 503
                    migrated.set()
                reconnecting(partial(probe, services.inbox_engine))
        except DATABASE_ERRORS:
            migrated.clear()
            return jsonify(status="not ready", reason="the database accepts no events"), 503
        now = verdict()
        if now is None:
            return jsonify(status="ready", warnings=None)
        health = now.health
        shown = {name: getattr(health, name) for name in ("pending", "failed", "oldest_pending_seconds")}
        return jsonify(status="ready", **shown, trusted=now.trusted, warnings=[each.name for each in now.conditions])

    return routes
