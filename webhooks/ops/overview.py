"""The overview page: whether the mirror is trustworthy, and the reasons if it is not."""

from collections import Counter
from datetime import datetime, timedelta
from typing import NamedTuple

from flask import Blueprint, render_template
from sqlalchemy import Engine, func, select
from werkzeug import Response

from models.database import read_transaction
from models.tables import Event
from models.types import db_now
from webhooks.ops.shared import start_resync
from worker.bootstrap import Services
from worker.reports.conditions import COLORS
from worker.reports.verdict import judge

DAY = timedelta(days=1)
BAR = timedelta(minutes=5)


class Bar(NamedTuple):
    """A bar of the chart: its start time, and its events per minute."""

    at: datetime
    per_minute: float


def add(routes: Blueprint, services: Services) -> None:
    """Add the page to `routes`."""

    @routes.get("/")
    def overview() -> str:
        verdict = judge(services.engine, services.report_redis, services.settings)
        bars = arrivals(services.engine)
        return render_template(
            "ops/overview.html",
            verdict=verdict,
            health=verdict.health,
            color=COLORS.__getitem__,
            bars=bars,
            peak=max(bar.per_minute for bar in bars),
        )

    @routes.post("/resync")
    def resync() -> Response:
        return start_resync(services)


def arrivals(engine: Engine) -> list[Bar]:
    """Return the events received in the last 24 hours as bars of five minutes, oldest first. Times are in UTC."""
    # The database counts by minute, because there may be many events.
    on_postgresql = engine.dialect.name == "postgresql"
    minute = func.date_trunc("minute", Event.received_at) if on_postgresql else func.substr(Event.received_at, 1, 16)
    with read_transaction(engine) as tx:
        now: datetime = tx.execute(select(db_now())).scalar_one()
        start = now.replace(second=0, microsecond=0) - DAY + timedelta(minutes=1)
        query = select(minute, func.count()).where(Event.received_at >= start).group_by(minute)
        counts: Counter[int] = Counter()
        for at, number in tx.execute(query):
            received = at if isinstance(at, datetime) else datetime.fromisoformat(f"{at}+00:00")
            counts[(received - start) // BAR] += number
    minutes = BAR / timedelta(minutes=1)
    return [Bar(start + place * BAR, counts[place] / minutes) for place in range(DAY // BAR)]
