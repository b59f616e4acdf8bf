"""The overview page: whether the mirror is trustworthy, and the reasons if it is not."""

from datetime import datetime, timedelta
from typing import NamedTuple

from flask import Blueprint, render_template
from sqlalchemy import Engine, func, literal_column, select
from werkzeug import Response

from models.database import read_transaction
from models.tables import Event
from models.types import db_now
from webhooks.ops.start_run import start_resync
from worker.bootstrap import Services
from worker.reports.health import check_health

DAY = timedelta(days=1)
BAR_MINUTES = 5
EPOCH = "timestamptz '2000-01-01T00:00Z'"
BARS = int(DAY / timedelta(minutes=BAR_MINUTES))


class Bar(NamedTuple):
    """A bar of the chart: its start time, and its events per minute."""

    at: datetime
    per_minute: float


def add(routes: Blueprint, services: Services) -> None:
    """Add the page to `routes`."""

    @routes.get("/")
    def overview() -> str:
        health = check_health(services.engine, services.redis, services.settings)
        bars = arrivals(services.engine)
        return render_template("ops/overview.html", health=health, bars=bars, peak=max(bar.per_minute for bar in bars))

    @routes.post("/resync")
    def resync() -> Response:
        return start_resync(services)


def arrivals(engine: Engine) -> list[Bar]:
    """Return the events received in the last 24 hours as one bar per `BAR_MINUTES`, oldest first. Times are in UTC."""
    # The database truncates to minutes, because there may be many events.
    minute = (
        func.date_bin(literal_column("interval '1 minute'"), Event.received_at, literal_column(EPOCH))
        if engine.dialect.name == "postgresql"
        else func.substr(Event.received_at, 1, 16)
    )
    with read_transaction(engine) as tx:
        now: datetime = tx.execute(select(db_now())).scalar_one()
        query = select(minute, func.count()).where(Event.received_at > now - DAY).group_by(minute)
        counts = {_as_datetime(at): number for at, number in tx.execute(query)}
    start = now.replace(second=0, microsecond=0) - DAY + timedelta(minutes=1)
    bars = []
    for step in range(BARS):
        at = start + timedelta(minutes=step * BAR_MINUTES)
        minutes = (at + timedelta(minutes=n) for n in range(BAR_MINUTES))
        bars.append(Bar(at, sum(counts.get(minute, 0) for minute in minutes) / BAR_MINUTES))
    return bars


def _as_datetime(minute: datetime | str) -> datetime:
    return minute if isinstance(minute, datetime) else datetime.fromisoformat(f"{minute}+00:00")
