"""The overview page: whether the mirror is trustworthy, and the reasons if it is not."""

import math
from collections.abc import Iterator
from datetime import timedelta
from typing import NamedTuple

from flask import Blueprint, flash, redirect, render_template, request, url_for
from werkzeug import Response

from webhooks.ops.shared import actor, ask_for_reason, start_resync
from worker.bootstrap import Services
from worker.mirror import role_map
from worker.reports.arrivals import Arrivals, Chart, Range
from worker.reports.condition import COLORS
from worker.reports.conditions import CONDITIONS
from worker.reports.verdict import judge
from worker.send_test import send_test

SAMPLE = "user.updated"
"""The sample in the data of a test event."""
TEST_SECONDS = 5.0
"""How long the page waits until a test event is processed."""
LABELS = 4
"""Times below the chart, apart from the one at its end."""
PAGE_REMEDIES = {condition.name: condition.page_remedy for condition in CONDITIONS if condition.page_remedy}


class Column(NamedTuple):
    """A bar of the chart, in percent of its height. Failed events are part of the received ones; refusals are above."""

    tip: str
    received: float
    failed: float
    refused: float


def add(routes: Blueprint, services: Services) -> None:
    """Add the page to `routes`."""
    arrivals = Arrivals(services.engine, services.report_redis)

    @routes.get("/")
    def overview() -> str:
        verdict = judge(services.engine, services.report_redis, services.settings)
        over = request.args.get("range", Range.DAY, type=Range)
        chart = arrivals.chart(over)
        top = _axis_top(max((bar.received + bar.refused) / chart.minutes for bar in chart.bars))
        return render_template(
            "ops/overview.html",
            verdict=verdict,
            health=verdict.health,
            color=COLORS.__getitem__,
            page_remedies=PAGE_REMEDIES,
            digest_of=role_map.digest_of,
            ranges=Range,
            over=over,
            chart=chart,
            columns=list(_columns(chart, top)),
            top=top,
            labels=[f"{chart.bars[len(chart.bars) * n // LABELS].at:{_time_format(over)}}" for n in range(LABELS)],
        )

    @routes.post("/send-test")
    def send_test_event() -> Response:
        """Post a test event to the address at which this request arrived, and show what became of it."""
        host = request.environ["SERVER_NAME"]
        base = f"http://{f'[{host}]' if ':' in host else host}:{request.environ['SERVER_PORT']}"
        sent = send_test(services.engine, services.settings, SAMPLE, base, wait_seconds=TEST_SECONDS)
        flash(". ".join(sent.lines()), "bad" if sent.problem else "good")
        return redirect(url_for("ops.overview"))

    @routes.post("/resync")
    def resync() -> Response:
        return start_resync(services)

    @routes.post("/role-map/approve")
    def approve_role_map() -> Response:
        back = url_for("ops.overview")
        if asked := ask_for_reason(back):
            return asked
        changed = role_map.approve(services.engine, request.form.get("digest", ""), actor())
        flash(f"Approved. {changed} {'membership has' if changed == 1 else 'memberships have'} another role.", "good")
        return redirect(back)


def _time_format(over: Range) -> str:
    return "%b %d %H:%M" if over is Range.WEEK else "%H:%M"


def _axis_top(highest: float) -> float:
    """Return the end of the axis: 1, 2 or 5 times a power of ten that is not below `highest`."""
    if highest <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(highest))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= highest)


def _columns(chart: Chart, top: float) -> Iterator[Column]:
    for bar in chart.bars:
        heights = (100 * number / chart.minutes / top for number in (bar.received, bar.failed, bar.refused))
        end = bar.at + timedelta(minutes=chart.minutes)
        refused = f"{bar.refused} refused" if chart.knows_refused else "refused: not known"
        numbers = f"{bar.received} received, {bar.failed} of them failed, {refused}"
        rate = f"{bar.received / chart.minutes:.1f} events per minute"
        yield Column(f"{bar.at:%Y-%m-%d %H:%M} to {end:%H:%M} UTC\n{rate}\n{numbers}", *heights)
