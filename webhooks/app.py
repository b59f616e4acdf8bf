"""The Flask application."""

from http import HTTPStatus

import structlog
from flask import Flask, Response, abort, jsonify, request
from sqlalchemy.exc import SQLAlchemyError
from werkzeug.exceptions import HTTPException
from werkzeug.middleware.proxy_fix import ProxyFix

from models.database import DATABASE_ERRORS
from webhooks import health, metrics, receive
from webhooks.api import routes as api
from webhooks.ops import routes as ops
from worker import traces
from worker.bootstrap import Services
from worker.error_handling import describe, is_expected
from worker.errors import ConfigurationError
from worker.metrics import Counters, Place

log = structlog.get_logger()


class _Application(Flask):
    counters: Counters

    def log_exception(self, exc_info: tuple[object, BaseException | None, object]) -> None:
        """Report an unexpected error without its message or the path, which may contain secrets and personal data."""
        _, error, _ = exc_info
        if error is not None:
            self.counters.report(Place.REQUEST, request.endpoint or "none", error)


def create_app(services: Services) -> Flask:
    """Return the application.

    Raises:
        ConfigurationError: no webhook secret is set, so no delivery could be verified.
    """
    settings = services.settings
    if not settings.workos_webhook_secrets:
        raise ConfigurationError("WORKOS_WEBHOOK_SECRETS is not set")
    app = _Application(__name__, static_folder=None)
    app.counters = services.counters
    traces.watch_requests(app)
    app.url_map.merge_slashes = False
    # One byte more: Werkzeug silently truncates a body without Content-Length at this limit.
    app.config["MAX_CONTENT_LENGTH"] = settings.webhook_max_bytes + 1
    if hops := settings.trusted_proxy_hops:
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=hops, x_proto=hops)  # type: ignore[method-assign]
    app.before_request(_require_one_leading_slash)
    app.before_request(_reject_nul)
    app.after_request(receive.UnknownPaths(services.counters))
    app.register_blueprint(receive.blueprint(services))
    app.register_blueprint(health.blueprint(services))
    app.register_blueprint(metrics.blueprint(services))
    if settings.has_pages:
        ops.install(app, services)
    else:
        log.warning("ops_disabled", reason="OPS_TOKENS is not set")
    if settings.api_tokens:
        app.register_blueprint(api.blueprint(services, app))
    else:
        log.warning("api_disabled", reason="API_TOKENS is not set")
    app.register_error_handler(HTTPException, _as_json)
    for database_error in DATABASE_ERRORS:
        app.register_error_handler(database_error, _database_unavailable)
    return app


def _require_one_leading_slash() -> None:
    """Return 404 unless the path starts with exactly one slash: `//metrics` would bypass a proxy's rules."""
    path = request.environ["PATH_INFO"]
    if not path.startswith("/") or path.startswith("//"):
        abort(404)


def _reject_nul() -> None:
    """Reject NUL characters: PostgreSQL raises an error for them, and SQLite ignores everything after one."""
    query = request.args.values() if request.query_string else ()
    form = request.form.values() if request.blueprint == "ops" else ()  # A delivery's body is read raw.
    if any("\0" in value for value in (request.path, *query, *form)):
        abort(400, "NUL characters are not allowed")


def _database_unavailable(error: SQLAlchemyError) -> Response:
    if not is_expected(error):
        raise error  # a mistake in a query, answered with 500
    log.warning("database_unavailable", error=describe(error))
    response = jsonify(error="the database is unavailable; retry later")
    response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
    response.headers["Retry-After"] = str(receive.RETRY_AFTER_SECONDS)
    return response


def _as_json(error: HTTPException) -> Response:
    response = error.get_response()
    return Response(
        jsonify(error=error.description).get_data(),
        status=error.code,
        headers=[(name, value) for name, value in response.headers if name in {"Allow", "Retry-After"}],
        content_type="application/json",
    )
