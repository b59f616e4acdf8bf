"""Health: whether the process lives, and whether it can commit an event."""

from typing import Any

from flask import Blueprint, Response, jsonify
from redis.exceptions import RedisError
from sqlalchemy.exc import DBAPIError

from models.migrate import current_revision, newest_revision
from worker.inbox import backlog
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
            revision = current_revision(wiring.engine)
            waiting = backlog(wiring.engine) if revision == newest_revision() else None
        except DBAPIError:
            return jsonify(status="not ready", reason="the database cannot be reached"), 503
        if waiting is None:
            return jsonify(status="not ready", reason=f"the database stands at revision {revision or 'none'}"), 503
        body: dict[str, Any] = {"status": "ready", "pending": waiting.pending, "failed": waiting.failed}
        body["oldest_pending_seconds"] = round(waiting.oldest_seconds, 3)
        body["warnings"] = [] if _redis_answers(wiring) else ["Redis does not answer; the sweep applies events"]
        return jsonify(body)

    return routes


def _redis_answers(wiring: Wiring) -> bool:
    try:
        return bool(wiring.redis.ping())
    except RedisError:
        return False
