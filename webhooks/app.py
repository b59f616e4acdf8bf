"""The Flask application."""

from http import HTTPStatus
from typing import Any

import structlog
from flask import Flask, Response, abort, jsonify, request
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from werkzeug.exceptions import HTTPException
from werkzeug.middleware.proxy_fix import ProxyFix

from webhooks import api, health, metrics, ops, receive
from worker.bootstrap import Services
from worker.errors import ConfigurationError
from worker.logs import places

log = structlog.get_logger()


class _Application(Flask):
    def log_exception(self, exc_info: Any) -> None:
        """Log an unexpected error; Flask's own line quotes the path, whose token is secret, and the error's message."""
        error: BaseException = exc_info[1]
        log.error("request_failed", error=type(error).__name__, places=places(error), endpoint=request.endpoint)


def create_app(services: Services) -> Flask:
    """Return the application over `wiring`; `webhooks.wsgi` builds it from the environment.

    Raises:
        ConfigurationError: without a webhook secret nothing could be verified.
    """
    settings = services.settings
    if not settings.workos_webhook_secrets:
        raise ConfigurationError("WORKOS_WEBHOOK_SECRETS is not set")
    app = _Application(__name__, static_folder=None)
    app.url_map.merge_slashes = False
    # One byte more, to tell: Werkzeug ends a body without length at the limit and says nothing.
    app.config["MAX_CONTENT_LENGTH"] = settings.webhook_max_bytes + 1
    if settings.trusted_proxy_hops:
        hops = settings.trusted_proxy_hops
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=hops, x_proto=hops)  # type: ignore[method-assign]
    app.before_request(_refuse_other_spellings)
    app.before_request(_refuse_nul)
    app.register_blueprint(receive.blueprint(services))
    app.register_blueprint(health.blueprint(services))
    app.register_blueprint(metrics.blueprint(services))
    if settings.ops_tokens:
        ops.install(app, services)
    else:
        log.warning("ops_off", why="OPS_TOKENS is not set")
    if settings.api_tokens:
        app.register_blueprint(api.blueprint(services, app))
    else:
        log.warning("api_off", why="API_TOKENS is not set")
    app.register_error_handler(HTTPException, _as_json)
    app.register_error_handler(DBAPIError, _database_away)
    app.register_error_handler(PoolTimeoutError, _database_away)
    return app


def _refuse_other_spellings() -> None:
    """Answer 404 unless the path begins with exactly one slash: routing ignores more, a proxy's rules do not."""
    path = request.environ["PATH_INFO"]
    if not path.startswith("/") or path.startswith("//"):
        abort(404)


def _refuse_nul() -> None:
    """Refuse what no name here can hold: PostgreSQL calls NUL an error, and SQLite looks no further than it."""
    asked = request.args.values() if request.query_string else ()
    forms = request.form.values() if request.blueprint == "ops" else ()  # a delivery's body is read raw
    if any("\0" in said for said in (request.path, *asked, *forms)):
        abort(400, "a NUL stands in the address or the form")


def _database_away(error: SQLAlchemyError) -> Response:
    log.warning("database_away", error=receive.type_name(error))
    answer = jsonify(error="the database does not answer; ask again")
    answer.status_code = HTTPStatus.SERVICE_UNAVAILABLE
    answer.headers["Retry-After"] = str(receive.RETRY_AFTER_SECONDS)
    return answer


def _as_json(error: HTTPException) -> Response:
    response = error.get_response()
    return Response(
        jsonify(error=error.description).get_data(),
        status=error.code,
        headers=[(name, value) for name, value in response.headers if name in {"Allow", "Retry-After"}],
        content_type="application/json",
    )
