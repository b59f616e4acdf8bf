"""The first page: is the mirror right, and if not, what is wrong."""

from datetime import datetime, timedelta
from typing import NamedTuple

from flask import Blueprint, flash, redirect, render_template, session, url_for
from sqlalchemy import Engine, func, literal_column, select
from werkzeug import Response

from models.database import read_transaction
from models.tables import Event
from models.types import db_now
from worker.bootstrap import Services
from worker.errors import ConfigurationError
from worker.repair.resync.resync import start
from worker.reports.health import check_health

DAY = timedelta(days=1)
STEP_MINUTES = 5
EPOCH = "timestamptz '2000-01-01T00:00Z'"
STEPS = int(DAY / timedelta(minutes=STEP_MINUTES))


class Bar(NamedTuple):
    """Some minutes of the chart: when they began, and events a minute in them."""

    at: datetime
    per_minute: float


def add(routes: Blueprint, services: Services) -> None:
    """Add it to `routes`."""

    @routes.get("/")
    def overview() -> str:
        health = check_health(services.engine, services.redis, services.settings)
        bars = arrivals(services.engine)
        return render_template("ops/overview.html", health=health, bars=bars, most=max(bar.per_minute for bar in bars))

    @routes.post("/resync")
    def resync() -> Response:
        require_repairs(services)
        run_id = start(services.engine, session["name"])
        services.repair_bell.ring()
        flash("The resync is asked for; a worker begins at once.", "good")
        return redirect(url_for("ops.run", run_id=run_id))


def require_repairs(services: Services) -> None:
    """Check that a worker can ask WorkOS, or a run would wait for ever; raises `ConfigurationError`."""
    if not services.settings.repairs:
        raise ConfigurationError("WORKOS_API_KEY is not set, so no worker can ask WorkOS.")


def arrivals(engine: Engine) -> list[Bar]:
    """Return how many events came, minute by minute, over the last day, a few minutes to a bar, oldest first."""
    # Arithmetic on PostgreSQL, text down to the minute on SQLite: there may be many.
    minute = (
        func.date_bin(literal_column("interval '1 minute'"), Event.received_at, literal_column(EPOCH))
        if engine.dialect.name == "postgresql"
        else func.substr(Event.received_at, 1, 16)
    )
    with read_transaction(engine) as tx:
        now: datetime = tx.execute(select(db_now())).scalar_one()
        counted = select(minute, func.count()).where(Event.received_at > now - DAY).group_by(minute)
        found = {_instant(at): number for at, number in tx.execute(counted)}
    begins = now.replace(second=0, microsecond=0) - DAY + timedelta(minutes=1)
    bars = []
    for step in range(STEPS):
        at = begins + timedelta(minutes=step * STEP_MINUTES)
        minutes = (at + timedelta(minutes=n) for n in range(STEP_MINUTES))
        bars.append(Bar(at, sum(found.get(minute, 0) for minute in minutes) / STEP_MINUTES))
    return bars


def _instant(minute: datetime | str) -> datetime:
    return minute if isinstance(minute, datetime) else datetime.fromisoformat(f"{minute}+00:00")
