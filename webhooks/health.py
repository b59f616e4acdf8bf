"""Health: whether the process lives, and whether it can commit an event."""

from typing import Any

from flask import Blueprint, Response, jsonify
from redis.exceptions import RedisError
from sqlalchemy.exc import DBAPIError

from models.migrate import outdated
from worker.inbox import backlog, probe
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
            waiting = backlog(wiring.engine)
        except DBAPIError:
            return jsonify(status="not ready", reason="the database takes no events"), 503
        body: dict[str, Any] = {"status": "ready", "pending": waiting.pending, "failed": waiting.failed}
        body["oldest_pending_seconds"] = round(waiting.oldest_seconds, 3)
        away = "Redis does not answer; events are kept, and applied when it is back"
        body["warnings"] = [] if _redis_answers(wiring) else [away]
        return jsonify(body)

    return routes


def _redis_answers(wiring: Wiring) -> bool:
    try:
        return bool(wiring.redis.ping())
    except RedisError:
        return False
