"""The pages, and how values look in them."""

from datetime import datetime

import structlog
from flask import Blueprint, Flask, render_template, session
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from werkzeug.exceptions import HTTPException

from webhooks.ops import auto_join, inbox, mirror, overview, runs, sign_in
from webhooks.receive import type_name
from worker.bootstrap import Services
from worker.errors import ConfigurationError
from worker.mirror.change_feed import as_json

log = structlog.get_logger()


def install(app: Flask, services: Services) -> None:
    """Add the pages to `app`."""
    forms = sign_in.prepare(app, services.settings)
    routes = Blueprint(
        "ops",
        __name__,
        url_prefix="/ops",
        template_folder="templates",
        static_folder="static",
        static_url_path="/static",
    )
    sign_in.add(routes, services.settings, forms)
    for pages in (overview, inbox, mirror, auto_join, runs):
        pages.add(routes, services)

    @routes.errorhandler(HTTPException)
    def failed(error: HTTPException) -> tuple[str, int]:
        return render_template("ops/error.html", title=error.name, said=error.description), error.code or 500

    @routes.errorhandler(ConfigurationError)
    def refused(error: ConfigurationError) -> tuple[str, int]:
        return render_template("ops/error.html", title="Not done", said=str(error)), 409

    @routes.errorhandler(DBAPIError)
    @routes.errorhandler(PoolTimeoutError)
    def away(error: SQLAlchemyError) -> tuple[str, int]:
        log.warning("database_away", error=type_name(error))
        said = "The database does not answer. Deliveries that cannot be stored are refused, and WorkOS repeats them."
        return render_template("ops/error.html", title="Database away", said=said), 503

    @routes.context_processor
    def who() -> dict[str, str | None]:
        return {"who": session.get("name")}

    routes.add_app_template_filter(_when, "when")
    routes.add_app_template_filter(_span, "span")
    routes.add_app_template_filter(as_json, "as_json")
    app.register_blueprint(routes)


def _when(value: datetime | None) -> str:
    """Return a time as people read it, in UTC."""
    return f"{value:%Y-%m-%d %H:%M:%S}" if value else ""


def _span(seconds: float | None) -> str:
    """Return a duration in its two largest units."""
    if seconds is None:
        return ""
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    parts = []
    for name, size in units:
        number, seconds = divmod(seconds, size)
        if number:
            parts.append(f"{number:.0f} {name}")
    return " ".join(parts[:2]) or "0 s"
