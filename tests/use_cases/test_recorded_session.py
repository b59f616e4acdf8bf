"""602 deliveries recorded from WorkOS's emulator converge on its state in any order."""

import json
import random
from collections.abc import Callable

import pytest
from flask.testing import FlaskClient
from freezegun import freeze_time

from models.database import open_engine
from models.tables import Change, Read
from tests.support import (
    JSON,
    apply_all,
    differences,
    mirrored,
    rows,
    session_deliveries,
    session_secret,
    session_truth,
    statuses,
)
from tests.support.histories import broken_chains
from tests.support.stories import store
from webhooks.app import create_app
from worker.bootstrap import Services
from worker.inbox.drain import DrainLimits

pytestmark = pytest.mark.long

RECORDED_AT = "2026-11-23T03:07:47Z"


def in_arrival_order(deliveries: list[JSON]) -> list[JSON]:
    return deliveries


def reversed_order(deliveries: list[JSON]) -> list[JSON]:
    return deliveries[::-1]


def shuffled(seed: int) -> Callable[[list[JSON]], list[JSON]]:
    def order(deliveries: list[JSON]) -> list[JSON]:
        dice = random.Random(seed)
        twice = deliveries + dice.choices(deliveries, k=len(deliveries) // 3)
        dice.shuffle(twice)
        return twice

    return order


def deliver(endpoint: FlaskClient, deliveries: list[JSON]) -> None:
    for delivery in deliveries:
        answer = endpoint.post(
            "/webhooks/workos",
            data=delivery["body"].encode(),
            headers={"WorkOS-Signature": delivery["signature"]},
        )
        assert answer.status_code == 200, answer.get_data(as_text=True)


@pytest.mark.parametrize("order", [in_arrival_order, reversed_order, shuffled(0)])
def test_any_order_converges(make_services: Callable[..., Services], order: Callable[[list[JSON]], list[JSON]]) -> None:
    services = make_services(workos_webhook_secrets=session_secret())
    endpoint = create_app(services).test_client()
    deliveries = order(session_deliveries())
    with freeze_time(RECORDED_AT):
        # In three parts with drains between, so that rows are decided against stored ones and not only in one batch.
        third = len(deliveries) // 3 + 1
        for start in range(0, len(deliveries), third):
            deliver(endpoint, deliveries[start : start + third])
            apply_all(services.engine, DrainLimits(batch_size=100))
    assert statuses(services.engine) == {"done": 602}
    assert differences(services.engine, session_truth()) == []


def with_ties() -> list[JSON]:
    """The events of the recorded session, all in the same minute: most events about one object tie."""
    events: dict[str, JSON] = {}
    for delivery in session_deliveries():
        event = json.loads(delivery["body"])
        data = event["data"].get("organization_domain", event["data"])
        event["created_at"] = f"{event['created_at'][:16]}:00.000Z"
        if "updated_at" in data:
            data["updated_at"] = event["created_at"]
        events[event["id"]] = event
    return list(events.values())


@pytest.mark.parametrize("seed", range(2))
def test_ties_end_in_the_same_rows_and_reads_in_any_order(make_database: Callable[[str], str], seed: int) -> None:
    events = with_ties()
    ends = []
    for order in (events, events[::-1], random.Random(seed).sample(events, len(events))):
        engine = open_engine(make_database("sqlite"))
        third = len(order) // 3 + 1
        for start in range(0, len(order), third):
            store(engine, order[start : start + third])
            apply_all(engine, DrainLimits(batch_size=100))
        found = mirrored(engine)
        live = {(kind, row["id"]) for kind, of_kind in found.items() for row in of_kind if row["deleted_by"] is None}
        ties = {(row["kind"], row["object_id"]) for row in rows(engine, Read) if "same time" in row["reason"]}
        ends.append((found, ties & live))
        assert not (broken := broken_chains(rows(engine, Change))), broken
        engine.dispose()
    assert ends[0] == ends[1] == ends[2]
    assert len(ends[0][1]) > 20


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_two_orders_produce_identical_rows(
    make_database: Callable[[str], str], build_test_services: Callable[..., Services], kind: str
) -> None:
    ends = []
    for order in (in_arrival_order, reversed_order):
        services = build_test_services(database_url=make_database(kind), workos_webhook_secrets=session_secret())
        with freeze_time(RECORDED_AT):
            deliver(create_app(services).test_client(), order(session_deliveries()))
        apply_all(services.engine)
        ends.append(mirrored(services.engine))
    assert ends[0] == ends[1]
