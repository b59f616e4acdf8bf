"""With OTEL_EXPORTER_OTLP_ENDPOINT, traces follow deliveries; no value leaves, and no collector delays anything."""

import asyncio
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.instrumentation.redis import RedisInstrumentor
from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor
from sqlalchemy import update

from models.database import in_transaction
from models.tables import Event, EventStatus, Tail
from models.types import db_now
from tests.support import accept, apply_all, event_row, made, post, rows
from tests.support.collector import Collector, collecting
from tests.support.hooks import SECRET as HOOK_SECRET
from tests.support.hooks import Web, dripping, follow_all, raw_host
from tests.support.ops import sign_in
from tests.support.processes import eventually
from tests.support.resync import client_of, resync
from tests.support.tail import following
from webhooks.app import create_app
from webhooks.asgi import Gateway
from worker import traces
from worker.bootstrap import Services
from worker.errors import ConfigurationError
from worker.hooks.targets import WebTarget
from worker.inbox.drain import Drain, DrainLimits
from worker.kinds import KINDS, LISTINGS, READERS
from worker.queue.doorbell import Doorbell
from worker.sandbox import Sandbox, populate
from worker.workos_api.client import WorkOSClient, route

SECRET = "ann@acme.example"
TOKEN = "token-of-a-path-1234"
FOREIGN = f"00-{'a' * 32}-{'b' * 16}-01"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as running:
        yield running
        traces.stop()
        for instrumentor in (SQLAlchemyInstrumentor(), RedisInstrumentor()):
            if instrumentor.is_instrumented_by_opentelemetry:
                instrumentor.uninstrument()


@pytest.fixture
def traced(collector: Collector, make_services: Callable[..., Services]) -> Callable[..., Services]:
    """A function that builds the parts of a process that sends all traces."""

    def make(**settings: Any) -> Services:
        given = {"otel_exporter_otlp_endpoint": collector.url, "otel_traces_sampler_arg": 1.0, "api_tokens": TOKEN}
        return make_services(**given | settings)

    return make


def test_a_trace_goes_from_a_delivery_to_its_decision(collector: Collector, traced: Callable[..., Services]) -> None:
    services = traced()
    event = made("organization.created")
    accept(create_app(services).test_client(), event)
    apply_all(services.engine)
    traces.stop()
    first = collector.named("POST /webhooks/workos")[0]
    spans = {span.name: span for span in collector.spans if span.trace == first.trace}
    assert first.parent == "" and first.attributes["http.status_code"] == 200
    assert spans["commit"].parent == first.id == spans["apply"].parent
    assert spans["decide"].parent == spans["apply"].id
    assert spans["INSERT"].trace == first.trace, "the statement that stored the event, or applied it"
    about = {"workos_sync.event.id": event["id"], "workos_sync.event.type": event["event"]}
    organization = {"workos_sync.organization.id": event["data"]["id"]}
    assert spans["commit"].attributes == about | organization
    assert spans["apply"].attributes == about
    assert {span.resource["service.name"] for span in collector.spans} == {"workos-sync"}
    stored = event_row(services.engine, event["id"])["traceparent"]
    assert stored == f"00-{first.trace}-{first.id}-01"


def test_a_replayed_event_continues_its_trace(collector: Collector, traced: Callable[..., Services]) -> None:
    services = traced()
    accept(create_app(services).test_client(), event := made("organization.created"))
    apply_all(services.engine)
    again = update(Event).values(status=EventStatus.PENDING, replays=1, due_at=db_now())
    in_transaction(services.engine, lambda tx: tx.execute(again))
    apply_all(services.engine)
    traces.stop()
    assert [span.attributes["workos_sync.event.id"] for span in collector.named("apply")] == [event["id"]] * 2
    assert len({span.trace for span in collector.named("apply")}) == 1


def test_events_of_a_batch_keep_their_own_traces(collector: Collector, traced: Callable[..., Services]) -> None:
    services = traced()
    endpoint = create_app(services).test_client()
    accept(endpoint, *(made("organization.created", id=f"org_{number}") for number in range(3)))
    apply_all(services.engine)
    traces.stop()
    applied = collector.named("apply")
    assert len({span.trace for span in applied}) == len(applied) == 3
    assert {span.trace for span in collector.named("POST /webhooks/workos")} == {span.trace for span in applied}
    assert {span.parent for span in collector.named("decide")} == {span.id for span in applied}


def test_a_hook_continues_the_trace_and_passes_it_on(
    collector: Collector, traced: Callable[..., Services], web_host: Web
) -> None:
    services = traced()
    engine = services.engine
    target = WebTarget(web_host.url, HOOK_SECRET, 5)
    accept(create_app(services).test_client(), made("organization.created"))
    apply_all(engine)
    follow_all(engine, {"crm": target}, 1)
    target.close()
    traces.stop()
    [request] = collector.named("POST /webhooks/workos")
    [called] = collector.named("hook")
    assert (called.trace, called.parent) == (request.trace, request.id)
    assert called.attributes == {"workos_sync.hook": "crm", "workos_sync.kind": "organization"}
    assert web_host.traceparents == [f"00-{called.trace}-{called.id}-01"]


def test_a_share_of_traces_is_sent_and_no_other_is_stored(
    collector: Collector, traced: Callable[..., Services]
) -> None:
    services = traced(otel_traces_sampler_arg=0.0)
    accept(create_app(services).test_client(), made("organization.created"), made("user.created"))
    apply_all(services.engine)
    traces.stop()
    assert collector.spans == []
    assert {row["traceparent"] for row in rows(services.engine, Event)} == {None}


def test_a_sender_cannot_have_its_delivery_traced(collector: Collector, traced: Callable[..., Services]) -> None:
    services = traced(otel_traces_sampler_arg=0.0)
    event = made("organization.created")
    post(create_app(services).test_client(), event, traceparent=FOREIGN, baggage="user=ann")
    assert event_row(services.engine, event["id"])["traceparent"] is None
    traces.stop()
    assert collector.spans == []


def test_a_sender_cannot_join_another_trace(collector: Collector, traced: Callable[..., Services]) -> None:
    post(create_app(traced()).test_client(), made("organization.created"), traceparent=FOREIGN)
    traces.stop()
    assert collector.spans and "a" * 32 not in {span.trace for span in collector.spans}


def test_a_streamed_answer_is_traced_until_it_begins(collector: Collector, traced: Callable[..., Services]) -> None:
    services = traced()
    app = create_app(services)
    gateway = Gateway(app, 2, services.counters)
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.sleep(5)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"method": "GET", "raw_path": b"/api/v1/snapshot", "query_string": b"", "scheme": "http", "client": None}
    headers = [(b"authorization", f"Bearer {TOKEN}".encode())]
    asyncio.run(gateway(scope | {"server": None, "headers": headers}, receive, send))
    traces.stop()
    assert (sent[0]["status"], sent[-1]["more_body"]) == (200, False)
    [request] = collector.named("GET /api/v1/snapshot")
    assert request.attributes["http.status_code"] == 200


def test_statements_of_no_trace_and_probes_are_not_sent(collector: Collector, traced: Callable[..., Services]) -> None:
    services = traced()
    assert Drain(services.engine, DrainLimits())()
    services.redis.ping()
    services.bell.ring()
    client = create_app(services).test_client()
    assert [client.get(path).status_code for path in ("/healthz", "/readyz", "/metrics")] == [200, 200, 200]
    traces.stop()
    assert collector.spans == []


def test_calls_of_workos_pages_and_reads_are_traced_by_route(
    collector: Collector, traced: Callable[..., Services]
) -> None:
    redis = traced().redis
    with Sandbox(seed=3) as sandbox:
        populate(sandbox.world, organizations=1, members=1)
        client = client_of(sandbox, redis)
        client.list_page(("organizations",))
        assert client.read(("user_management", "users", "user_none"), "user").item is None
        client.close()
    traces.stop()
    found = [(span.attributes["http.route"], span.is_error) for span in collector.named("workos.call")]
    assert found == [("/organizations", False), ("/user_management/users/{id}", True)]
    missing = collector.named("workos.call")[1].attributes
    assert (missing["http.response.status_code"], missing["error.type"]) == (404, "CallError")
    assert b"user_none" not in collector.raw


def test_reads_of_the_tail_and_pages_of_a_resync_are_traced(
    collector: Collector, traced: Callable[..., Services], sandbox: Sandbox, workos: WorkOSClient, bell: Doorbell
) -> None:
    engine = traced().engine
    populate(sandbox.world, organizations=2, members=2)
    resync(engine, workos)
    with following(engine, workos, bell, hold_back_seconds=0.01):
        eventually(lambda: rows(engine, Tail) and rows(engine, Tail)[0]["read_to"], 20)
    traces.stop()
    calls = {span.parent for span in collector.named("workos.call")}
    pages = collector.named("resync.page")
    assert {"workos_sync.kind": "organizations", "workos_sync.items": 2} in [page.attributes for page in pages]
    assert {page.id for page in pages} <= calls, "each page is a call"
    [read, *_] = collector.named("tail.read")
    assert read.id in calls and read.parent == ""


def test_every_path_has_a_route() -> None:
    paths = [kind.read_path("X") for kind in KINDS.values() if kind.is_readable]
    paths += [listing.path("X") for _, listing in LISTINGS.values() if listing.path is not None]
    assert len(paths) > 10
    assert [route(path) for path in paths] == [f"/{'/'.join(path)}".replace("X", "{id}") for path in paths]


def test_no_value_leaves(
    collector: Collector, traced: Callable[..., Services], monkeypatch: pytest.MonkeyPatch
) -> None:
    services = traced(
        webhook_path_token=TOKEN, ops_tokens=f"ann:{TOKEN}", environment_name="staging", first_backoff_seconds=0.001
    )
    app = create_app(services).test_client()
    headers = {"User-Agent": SECRET, "X-Forwarded-For": SECRET}
    assert post(app, made("user.created", email=SECRET), f"/webhooks/workos/{TOKEN}", **headers).status_code == 200
    apply_all(services.engine)

    def fail(*_: object) -> None:
        raise KeyError(f"no {SECRET}")

    kind, _ = READERS["user.updated"]
    monkeypatch.setitem(READERS, "user.updated", (kind, fail))
    assert post(app, made("user.updated", email=SECRET), f"/webhooks/workos/{TOKEN}").status_code == 200
    assert Drain(services.engine, DrainLimits(max_attempts=1))()
    invalid = made("user.created", email=SECRET, updated_at=SECRET)
    assert post(app, invalid, f"/webhooks/workos/{TOKEN}").status_code == 200
    assert Drain(services.engine, DrainLimits(max_attempts=1))()
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    assert app.get(f"/api/v1/members?email={SECRET}", headers=bearer).status_code in {200, 404}
    assert app.get(f"/{SECRET}/{TOKEN}?q={SECRET}").status_code == 404
    assert app.open(f"/{SECRET}", method="ANN").status_code == 404
    assert sign_in(app, TOKEN).status_code == 302
    assert SECRET in app.get(f"/ops/search?q={SECRET}", follow_redirects=True).get_data(as_text=True)
    traces.stop()
    names = {span.name for span in collector.spans}
    assert {"POST /webhooks/workos/<token>", "GET", "_OTHER", "commit", "apply", "INSERT", "SELECT"} <= names
    failed = [span.attributes["error.type"] for span in collector.named("apply") if span.is_error]
    assert failed == ["KeyError", "PayloadError"]
    for word in (SECRET, "ann%40", "acme.example", TOKEN, str(services.engine.url.database), "no ann", "Traceback"):
        assert word.encode() not in collector.raw, word
    allowed = r"workos_sync\.|http\.(request\.method|method|route|status_code|response\.status_code)$|db\.|error\.type"
    keys = {key for span in collector.spans for key in span.attributes}
    assert all(re.match(allowed, key) for key in keys), keys


@pytest.mark.parametrize("answer", [503, 400])
def test_a_collector_that_refuses_delays_nothing(
    answer: int, collector: Collector, traced: Callable[..., Services], logs: list[Any]
) -> None:
    collector.refuse(answer)
    services = traced()
    endpoint = create_app(services).test_client()
    for number in range(50):
        accept(endpoint, made("organization.created", id=f"org_{number}"))
    apply_all(services.engine)
    began = time.monotonic()
    traces.stop()
    assert time.monotonic() - began < 3
    assert len([line for line in logs if line["event"] == "traces_not_sent"]) <= 1
    eventually(lambda: not [each for each in threading.enumerate() if each.name == "traces-end"], 3)


@pytest.mark.alone
def test_a_collector_that_never_answers_delays_the_end_by_two_seconds(
    make_services: Callable[..., Services], db_url: str
) -> None:
    with raw_host(dripping(b"HTTP/1.1 200 OK\r\n" + b"X-Slow: 1\r\n" * 100)) as url:
        services = make_services(otel_exporter_otlp_endpoint=url, otel_traces_sampler_arg=1.0)
        endpoint = create_app(services).test_client()
        began = time.monotonic()
        for number in range(100):  # more spans than a batch of the exporter, which thus begins to send
            accept(endpoint, made("organization.created", id=f"org_{number}"))
        apply_all(services.engine)
        assert time.monotonic() - began < 30
        began = time.monotonic()
        traces.stop()
        assert 1 < time.monotonic() - began < 3


def test_a_collector_that_is_down_delays_nothing(make_services: Callable[..., Services]) -> None:
    services = make_services(otel_exporter_otlp_endpoint="http://127.0.0.1:1", otel_traces_sampler_arg=1.0)
    accept(create_app(services).test_client(), made("organization.created"))
    apply_all(services.engine)
    began = time.monotonic()
    traces.stop()
    assert time.monotonic() - began < 3


def test_traces_can_be_started_again(collector: Collector, traced: Callable[..., Services]) -> None:
    before = set(threading.enumerate())
    for number in range(2):
        services = traced()
        accept(create_app(services).test_client(), made("organization.created", id=f"org_{number}"))
        traces.stop()
    assert len(collector.named("commit")) == 2
    assert not [each for each in set(threading.enumerate()) - before if "Otel" in each.name], "it leaves no thread"


OFF = """
import json, sys, threading
from tests.support import accept, made
from worker.bootstrap import build_services
from worker.settings import Settings
from webhooks.app import create_app
from tests.support import SECRET, apply_all, rows
from models.tables import Event

# redis-py imports some other parts by itself, if they are installed.
OURS = ("opentelemetry.sdk.trace", "opentelemetry.exporter", "opentelemetry.instrumentation", "worker.traces.otel")
url, redis_url = sys.argv[1:]
settings = Settings(database_url=url, redis_url=redis_url, workos_webhook_secrets=SECRET)
services = build_services(settings, redis_url)
accept(create_app(services).test_client(), made("organization.created"))
apply_all(services.engine)
print(json.dumps([
    [name for name in sys.modules if name.startswith(OURS)],
    [each.name for each in threading.enumerate() if "Otel" in each.name],
    [row["traceparent"] for row in rows(services.engine, Event)],
]))
services.close()
"""


def test_without_the_setting_nothing_is_imported_started_or_stored(
    make_database: Callable[[str], str], redis_url: str
) -> None:
    """In a process of its own: here, other tests have imported OpenTelemetry."""
    ran = subprocess.run(
        [sys.executable, "-c", OFF, make_database("sqlite"), redis_url],
        capture_output=True,
        cwd=Path(__file__).parents[2],
        text=True,
        check=True,
    )
    assert json.loads(ran.stdout.splitlines()[-1]) == [[], [], [None]]


def test_a_missing_extra_is_named(make_services: Callable[..., Services], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "worker.traces.otel", None)
    with pytest.raises(ConfigurationError, match=r"OTEL_EXPORTER_OTLP_ENDPOINT: run pip install 'workos-sync\[otel\]'"):
        make_services(otel_exporter_otlp_endpoint="http://127.0.0.1:4318")


def test_an_invalid_variable_of_the_sdk_is_named(
    make_services: Callable[..., Services], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "1")  # less than a batch
    with pytest.raises(ConfigurationError, match="OTEL_BSP_"):
        make_services(otel_exporter_otlp_endpoint="http://127.0.0.1:4318")
