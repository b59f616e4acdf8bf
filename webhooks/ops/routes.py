"""The blueprint of the pages, their error pages and template filters."""

from datetime import datetime
from http import HTTPStatus

import structlog
from flask import Blueprint, Flask, g, render_template
from sqlalchemy.exc import SQLAlchemyError
from werkzeug.exceptions import HTTPException

from models.database import DATABASE_ERRORS
from webhooks.ops import audit, auto_join, inbox, mirror, overview, runs, sign_in
from webhooks.ops.ids import IdConverter
from worker.bootstrap import Services
from worker.error_handling import describe, is_expected
from worker.errors import ConfigurationError, OperatorError, TimeError, UnknownIdError, WorkosSyncError
from worker.mirror.change_feed import as_json
from worker.reports.conditions import duration

log = structlog.get_logger()


def install(app: Flask, services: Services) -> None:
    """Register the pages on `app`."""
    app.url_map.converters["id"] = IdConverter
    csrf = sign_in.prepare(app, services.settings)
    routes = Blueprint("ops", __name__, url_prefix="/ops", template_folder="templates", static_folder="static")
    sign_in.add(routes, services, csrf)
    for pages in (overview, inbox, mirror, auto_join, runs, audit):
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
    def add_operator() -> dict[str, str | None]:
        return {"operator": g.get("operator")}

    routes.add_app_template_filter(_format_time, "format_time")
    routes.add_app_template_filter(_format_duration, "format_duration")
    routes.add_app_template_filter(as_json, "as_json")
    app.register_blueprint(routes)


def _format_time(value: datetime | None) -> str:
    """Return a time in UTC, such as `2026-03-01 12:00:00`; empty for None."""
    return f"{value:%Y-%m-%d %H:%M:%S}" if value else ""


def _format_duration(seconds: float | None) -> str:
    """Return a duration in its two largest units, such as `2 h 5 min`; empty for None."""
    return "" if seconds is None else duration(seconds)
