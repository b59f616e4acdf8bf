"""The overview: the chart of arrivals, and remedies in the pages' words."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import insert

from models.database import in_transaction
from models.tables import Event
from models.types import db_now_plus
from tests.support import accept, apply_all, made, sign
from tests.support.ops import TOKEN, sign_in
from webhooks.app import create_app
from worker.bootstrap import Services
from worker.inbox.store import TEST_TYPE
from worker.reports.arrivals import BARS, Arrivals, Range


@pytest.fixture
def services(local: Callable[..., Services]) -> Services:
    return local(ops_tokens=f"ann:{TOKEN}")


@pytest.fixture
def ann(services: Services) -> FlaskClient:
    client = create_app(services).test_client()
    sign_in(client)
    return client


def receive(services: Services, number: int, seconds_ago: float, **values: Any) -> None:
    """Add events to the inbox that arrived some time ago."""
    rows = [{"id": f"event_{seconds_ago}_{n}", "source": "webhook"} for n in range(number)]
    common = {"type": "user.updated", "status": "done", "received_at": db_now_plus(-seconds_ago)} | values
    in_transaction(services.engine, lambda tx: tx.execute(insert(Event).values(common), rows))


@pytest.mark.long
def test_chart_counts_arrivals_failures_and_refusals(services: Services, ann: FlaskClient) -> None:
    receive(services, 3, 1800)
    receive(services, 2, 1700, type=TEST_TYPE)  # not counted
    receive(services, 2, 7200, status="failed")
    receive(services, 4, 3 * 86400)
    receive(services, 5, 8 * 86400)
    for _ in range(6):
        wrong = {"WorkOS-Signature": sign(b"{}", "whsec_wrong_0123456789abcdef")}
        assert ann.post("/webhooks/workos", data=b"{}", headers=wrong).status_code == 401
    services.counters.hand_over()
    arrivals = Arrivals(services.engine, services.redis)
    for over, received, failed in ((Range.HOUR, 3, 0), (Range.DAY, 5, 2), (Range.WEEK, 9, 2)):
        chart = arrivals.chart(over)
        assert len(chart.bars) == BARS[over][0]
        sums = [sum(getattr(bar, name) for bar in chart.bars) for name in ("received", "failed", "refused")]
        assert (sums, chart.knows_refused) == ([received, failed, 6], True)
        page = ann.get(f"/ops/?range={over}").get_data(as_text=True)
        assert f"received {received}</span>" in page and f"failed {failed}</span>" in page
        assert len(re.findall(r'data-tip="[^"]* UTC\n[^"]* events per minute', page)) == BARS[over][0]
    receive(services, 1, 0)
    assert sum(bar.received for bar in arrivals.chart(Range.WEEK).bars) == 10, "bars that are over are remembered"
    assert "received 6</span>" in ann.get("/ops/?range=nonsense").get_data(as_text=True)


def test_overview_names_pages_and_not_commands(services: Services, ann: FlaskClient) -> None:
    accept(ann, made("user.created", updated_at=None))
    apply_all(services.engine)
    page = ann.get("/ops/").get_data(as_text=True)
    assert '<a href="/ops/failures"><strong>1 event failed</strong></a>' in page
    assert "Review the failures" in page and "workos-sync events failures" not in page
    assert "Therefore: " in page and page.count("the mirror was never filled") == 1
