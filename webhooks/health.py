"""Health checks: whether the process is alive, and whether it can commit an event."""

import threading

from flask import Blueprint, Response, jsonify
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from models.revisions import outdated
from worker.bootstrap import Services
from worker.inbox.store import probe
from worker.reports.health import check_health


def blueprint(services: Services) -> Blueprint:
    """Return the routes `/healthz` and `/readyz`."""
    routes = Blueprint("health", __name__)
    probing = threading.Lock()  # At most one: the inbox's other connection commits deliveries.

    @routes.get("/healthz")
    def healthz() -> Response:
        return jsonify(status="alive")

    @routes.get("/readyz")
    def readyz() -> Response | tuple[Response, int]:
        """Return 200 if an event can be committed. Other problems are warnings: deliveries do not need Redis."""
        try:
            with probing:
                if outdated(services.inbox_engine):
                    return jsonify(status="not ready", reason="the database is not migrated"), 503
                probe(services.inbox_engine)
        except (DBAPIError, PoolTimeoutError):
            return jsonify(status="not ready", reason="the database accepts no events"), 503
        try:
            health = check_health(services.engine, services.redis, services.settings)
        except (DBAPIError, PoolTimeoutError):  # Perhaps too slow. Deliveries can still be committed.
            return jsonify(status="ready", warnings=None)
        shown = {name: getattr(health, name) for name in ("pending", "failed", "oldest_pending_seconds", "trusted")}
        return jsonify(status="ready", **shown, warnings=health.reasons)

    return routes
