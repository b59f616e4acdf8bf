"""Health: whether the process lives, and whether it can commit an event."""

from flask import Blueprint, Response, jsonify
from sqlalchemy.exc import DBAPIError

from models.revisions import outdated
from worker.inbox.store import probe
from worker.looking.health import look
from worker.wiring import Wiring


def blueprint(wiring: Wiring) -> Blueprint:
    """Return `/healthz` and `/readyz`."""
    routes = Blueprint("health", __name__)

    @routes.get("/healthz")
    def healthz() -> Response:
        return jsonify(status="alive")

    @routes.get("/readyz")
    def readyz() -> Response | tuple[Response, int]:
        """Ready means that an event can be committed. The rest are warnings: Redis away must not close the door."""
        try:
            if outdated(wiring.engine):
                return jsonify(status="not ready", reason="the database is not migrated"), 503
            probe(wiring.engine)
        except DBAPIError:
            return jsonify(status="not ready", reason="the database takes no events"), 503
        try:
            health = look(wiring.engine, wiring.redis, wiring.settings)
        except DBAPIError:  # too slow, say: no reason to turn deliveries away
            return jsonify(status="ready", warnings=None)
        shown = {name: getattr(health, name) for name in ("pending", "failed", "oldest_pending_seconds", "trusted")}
        return jsonify(status="ready", **shown, warnings=health.reasons)

    return routes
