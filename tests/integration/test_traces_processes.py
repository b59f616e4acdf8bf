"""A trace connects the processes that a delivery passes through. A collector that hangs delays the end of none."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine

from models.database import open_engine
from models.tables import Change, Event
from tests.support import made, rows
from tests.support.collector import Received, collecting
from tests.support.deliveries import deliver
from tests.support.hooks import SECRET, Web, dripping, raw_host
from tests.support.processes import QUICK, Commands, Valkey, eventually
from tests.support.stories import encoded

pytestmark = pytest.mark.long

ORDER = ["POST /webhooks/workos", "commit", "apply", "decide", "hook"]


@pytest.fixture
def engine(make_database: Callable[[str], str], valkey: Valkey, commands: Commands, web_host: Web) -> Iterator[Engine]:
    """An engine on the database of the commands, which send all traces and call `web_host`."""
    url = make_database("postgresql")
    hooks = {"HOOKS": f"crm={web_host.url}", "HOOK_SECRETS": f"crm:{SECRET}"}
    commands.settings |= QUICK | hooks | {"DATABASE_URL": url, "REDIS_URL": valkey.url, "OTEL_TRACES_SAMPLER_ARG": "1"}
    opened = open_engine(url)
    yield opened
    opened.dispose()


def test_one_trace_from_three_processes(engine: Engine, commands: Commands, web_host: Web) -> None:
    with collecting() as collector:
        commands.settings["OTEL_EXPORTER_OTLP_ENDPOINT"] = collector.url
        worker = commands.start("worker")
        eventually(lambda: len(worker.lanes()) == 3, 60)
        web, port = commands.web()
        event = made("organization.created")
        assert deliver(port, encoded(event)) == 200
        eventually(lambda: web_host.took, 30)
        web.stop()
        worker.stop()
        [request] = collector.named(ORDER[0])
        spans = [span for span in collector.spans if span.trace == request.trace]
    ours = [span for span in spans if span.name in ORDER]
    assert [span.name for span in ours] == ORDER
    assert [span for span in spans if span.parent and span.parent not in {each.id for each in spans}] == []
    assert [span.name for span in spans if not span.parent] == [ORDER[0]], "it is one tree"
    by_process = {_pid(span): span.name for span in reversed(ours)}
    assert list(by_process.values()) == ["hook", "apply", "POST /webhooks/workos"], "three processes"
    assert {span.resource["service.name"] for span in spans} == {"workos-sync"}
    assert web_host.traceparents == [f"00-{ours[-1].trace}-{ours[-1].id}-01"]
    assert "INSERT" in {span.name for span in spans if _pid(span) == _pid(request)}, "the statement of the commit"


def test_deliveries_that_share_a_commit_keep_their_own_traces(engine: Engine, commands: Commands) -> None:
    with collecting() as collector:
        web, port = commands.web(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
        events = [made("organization.created", id=f"org_{number}") for number in range(40)]
        with ThreadPoolExecutor(16) as clients:
            assert set(clients.map(lambda event: deliver(port, encoded(event)), events)) == {200}
        web.stop()
        requests = {span.id: span for span in collector.named(ORDER[0])}
        commits = {span.attributes["workos_sync.event.id"]: span for span in collector.named("commit")}
    assert {requests[span.parent].trace for span in commits.values()} == {span.trace for span in requests.values()}
    assert len({span.trace for span in requests.values()}) == len(events)
    stored = {row["id"]: row["traceparent"] for row in rows(engine, Event)}
    assert stored == {id: f"00-{span.trace}-{span.parent}-01" for id, span in commits.items()}


def test_a_collector_that_hangs_delays_neither_deliveries_nor_the_end(
    engine: Engine, commands: Commands, web_host: Web
) -> None:
    with raw_host(dripping(b"HTTP/1.1 200 OK\r\n" + b"X-Slow: 1\r\n" * 100)) as url:
        commands.settings["OTEL_EXPORTER_OTLP_ENDPOINT"] = url
        worker = commands.start("worker")
        eventually(lambda: len(worker.lanes()) == 3, 60)
        web, port = commands.web()
        for number in range(20):
            assert deliver(port, encoded(made("organization.created", id=f"org_{number}"))) == 200
        eventually(lambda: len(rows(engine, Change)) == 20 and len(web_host.took) == 20, 30)
        web.stop()
        worker.stop()
    assert {bool(row["traceparent"]) for row in rows(engine, Event)} == {True}


def _pid(span: Received) -> int:
    return int(span.resource["process.pid"])
