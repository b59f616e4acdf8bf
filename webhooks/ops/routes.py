"""The blueprint of the pages, their error pages and template filters."""

from http import HTTPStatus
from typing import NoReturn
from urllib.parse import urlsplit

import structlog
from flask import Blueprint, Flask, abort, g, render_template
from sqlalchemy.exc import SQLAlchemyError
from werkzeug.exceptions import HTTPException

from models.database import DATABASE_ERRORS
from webhooks.ops import (
    audit,
    auto_join,
    explain,
    formats,
    hooks,
    inbox,
    lists,
    mirror,
    oidc,
    overview,
    runs,
    search,
    sign_in,
    workspaces,
)
from webhooks.ops.ids import IdConverter
from webhooks.ops.shared import may_act
from worker.bootstrap import Services
from worker.error_handling import describe, is_expected
from worker.errors import ConfigurationError, OperatorError, TimeError, UnknownIdError, WorkosSyncError

log = structlog.get_logger()


def install(app: Flask, services: Services) -> None:
    """Register the pages on `app`."""
    app.url_map.converters["id"] = IdConverter
    csrf = sign_in.prepare(app, services.settings)
    routes = Blueprint("ops", __name__, url_prefix="/ops", template_folder="templates", static_folder="static")
    sign_in.add(routes, services, csrf)
    oidc.add(app, routes, services)
    for pages in (overview, search, explain, inbox, workspaces, mirror, auto_join, hooks, runs, audit):
        pages.add(routes, services)

    @routes.errorhandler(HTTPException)
    def failed(error: HTTPException) -> tuple[str, int]:
        return render_template("ops/error.html", title=error.name, message=error.description), error.code or 500

    @routes.errorhandler(ConfigurationError)
    @routes.errorhandler(OperatorError)
    def refused(error: WorkosSyncError) -> tuple[str, int]:
        if isinstance(error, TimeError):
            status = error.status
        else:
            status = HTTPStatus.NOT_FOUND if isinstance(error, UnknownIdError) else HTTPStatus.CONFLICT
        return render_template("ops/error.html", title="Request failed", message=str(error)), status

    def database_unavailable(error: SQLAlchemyError) -> tuple[str, int]:
        if not is_expected(error):
            raise error  # a mistake in a query, answered with 500
        log.warning("database_unavailable", error=describe(error))
        message = "Deliveries get 503 until the database is back. WorkOS retries them."
        return render_template("ops/error.html", title="Database unavailable", message=message), 503

    for database_error in DATABASE_ERRORS:
        routes.register_error_handler(database_error, database_unavailable)

    @routes.context_processor
    def add_names() -> dict[str, object]:
        settings = services.settings
        return {
            "operator": g.get("operator"),
            "environment": settings.environment_name,
            "issuer": urlsplit(settings.oidc_issuer or "").hostname,
            "has_tokens": bool(settings.ops_tokens),
        }

    @routes.get("/<path:unknown>")
    def unknown_page(unknown: str) -> NoReturn:
        abort(404, "There is no such page.")

    formats.install(app)
    lists.install(app)
    app.add_template_global(may_act)
    app.register_blueprint(routes)
