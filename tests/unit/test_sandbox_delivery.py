"""The sandbox's webhooks, verified with the real SDK by a small receiver; and the sandbox as a process."""

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from freezegun import freeze_time
from workos import WorkOSClient
from workos.events.models import EventSchema

from worker.sandbox import Sandbox

SECRET = "whsec_of_the_test"
ROOT = Path(__file__).parents[2]


class Receiver:
    """Receives webhooks over HTTP: 401 for a wrong signature, otherwise the status that `answer(event)` returns."""

    def __init__(self) -> None:
        self.client = WorkOSClient(api_key="sk_test", client_id="client_test")
        self.answer: Callable[[dict[str, Any]], int] = lambda event: 200
        self.taken: list[dict[str, Any]] = []  # in order of arrival, including those that `answer` refused
        self.signatures: list[tuple[str, str]] = []  # (event id, header) of the same
        self.lock = threading.Lock()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(receiver.take(body, self.headers.get("WorkOS-Signature", "")))
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *arguments: Any) -> None:
                """Say nothing."""

        class Server(ThreadingHTTPServer):
            request_queue_size = 128  # many connections at once

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def take(self, body: bytes, header: str) -> int:
        try:
            self.client.webhooks.verify_header(event_body=body, event_signature=header, secret=SECRET)
        except ValueError:
            return 401
        event = json.loads(body)
        assert b": " not in body.split(b'"name"')[0]  # compact
        EventSchema.from_dict(event)
        with self.lock:
            self.taken.append(event)
            self.signatures.append((event["id"], header))
        return self.answer(event)

    def ids(self) -> list[str]:
        with self.lock:
            return [event["id"] for event in self.taken]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.server.shutdown()
    made.server.server_close()
    made.client.close()


@pytest.fixture
def sandbox(receiver: Receiver) -> Iterator[Sandbox]:
    with Sandbox(seed=7) as running:
        running.knobs.retry_base = 0.01
        running.add_endpoint(receiver.url, SECRET)
        yield running


def event_ids(sandbox: Sandbox) -> list[str]:
    return [event["id"] for event in sandbox.world.events]


@pytest.mark.long
def test_every_event_arrives_once_in_order_and_well_signed(sandbox: Sandbox, receiver: Receiver) -> None:
    sandbox.knobs.concurrency = 1
    sandbox.play(200)
    sandbox.deliveries.drain()
    assert receiver.taken == sandbox.world.events
    counters = sandbox.deliveries.counters
    assert counters.generated == counters.sent == counters.acknowledged == len(sandbox.world.events)
    assert counters.lost == counters.retried == counters.refused == counters.pending == 0


@pytest.mark.long
def test_lost_events_are_never_sent(sandbox: Sandbox, receiver: Receiver) -> None:
    sandbox.knobs.loss = 0.2
    sandbox.knobs.lose = lambda event: bool(event["event"] == "user.created")
    sandbox.play(300)
    sandbox.deliveries.drain()
    records = sandbox.deliveries.records
    lost = {id for id, record in records.items() if record.lost}
    assert sorted(receiver.ids()) == sorted(set(event_ids(sandbox)) - lost)
    assert {e["id"] for e in sandbox.world.events if e["event"] == "user.created"} < lost
    assert sandbox.deliveries.counters.lost == len(lost)
    assert all(record.acknowledged is not record.lost for record in records.values())


@pytest.mark.long
def test_duplicates(sandbox: Sandbox, receiver: Receiver) -> None:
    sandbox.knobs.duplicates = 0.3
    sandbox.play(200)
    sandbox.deliveries.drain()
    counters, arrived = sandbox.deliveries.counters, Counter(receiver.ids())
    assert set(arrived) == set(event_ids(sandbox))
    assert set(arrived.values()) == {1, 2}
    assert counters.duplicates_sent == len(receiver.taken) - counters.generated > 0
    assert counters.acknowledged == counters.generated


@pytest.mark.long
def test_reordering_stays_within_its_window(sandbox: Sandbox, receiver: Receiver) -> None:
    sandbox.knobs.concurrency = 1
    sandbox.knobs.reordering = 0.5
    sandbox.knobs.reorder_window = 5
    sandbox.knobs.flush_after = 60  # only later deliveries, or drain, set the held ones free
    sandbox.play(200)
    sandbox.deliveries.drain()
    sent, arrived = event_ids(sandbox), receiver.ids()
    assert arrived != sent
    assert sorted(arrived) == sorted(sent)
    # One that is held falls back by at most its window; the last ones went with drain.
    assert max(arrived.index(id) - sent.index(id) for id in sent) <= 5


def test_held_deliveries_are_sent_after_a_while(sandbox: Sandbox, receiver: Receiver) -> None:
    sandbox.knobs.reordering = 1.0
    sandbox.world.create_organization("Acme")
    sandbox.deliveries.wait_idle()
    assert receiver.ids() == event_ids(sandbox)


def test_a_retry_carries_its_first_signature(sandbox: Sandbox, receiver: Receiver) -> None:
    refusals = {"left": 3}

    def answer(event: dict[str, Any]) -> int:
        refusals["left"] -= 1
        return 200 if refusals["left"] < 0 else 503

    receiver.answer = answer
    sandbox.world.create_organization("Acme")
    sandbox.deliveries.wait_idle()
    counters = sandbox.deliveries.counters
    assert (counters.sent, counters.retried, counters.refused, counters.acknowledged) == (4, 3, 3, 1)
    assert len(set(receiver.signatures)) == 1
    assert sandbox.deliveries.records[event_ids(sandbox)[0]].statuses == [503, 503, 503, 200]


def test_retries_end(sandbox: Sandbox, receiver: Receiver) -> None:
    receiver.answer = lambda event: 500
    sandbox.knobs.retry_base = 0.001
    sandbox.world.create_organization("Acme")
    sandbox.deliveries.wait_idle()
    counters = sandbox.deliveries.counters
    assert (counters.sent, counters.retried, counters.given_up, counters.acknowledged) == (7, 6, 1, 0)
    receiver.answer = lambda event: 200
    sandbox.deliveries.send_again(event_ids(sandbox)[0])
    sandbox.deliveries.wait_idle()
    assert counters.acknowledged == 1


def test_a_receiver_that_is_down_or_slow_is_tried_again(sandbox: Sandbox, receiver: Receiver) -> None:
    go = threading.Event()
    receiver.answer = lambda event: 200 if go.wait(5) else 500
    sandbox.knobs.timeout = 0.05
    sandbox.world.create_organization("Acme")
    sandbox.deliveries.wait_for(lambda counters: counters.unanswered >= 1)
    go.set()
    sandbox.deliveries.wait_idle()
    assert sandbox.deliveries.counters.acknowledged == 1


def test_forged_deliveries_are_refused_and_counted_apart(sandbox: Sandbox, receiver: Receiver) -> None:
    sandbox.knobs.wrong_signatures = 0.5
    sandbox.play(100)
    sandbox.deliveries.drain()
    counters = sandbox.deliveries.counters
    assert counters.forged == counters.forged_refused > 20
    assert counters.forged_accepted == counters.refused == counters.retried == 0
    assert counters.sent == counters.acknowledged == counters.generated
    assert sorted(receiver.ids()) == sorted(event_ids(sandbox))


def test_pausing_and_delay(sandbox: Sandbox, receiver: Receiver) -> None:
    sandbox.knobs.paused = True
    sandbox.knobs.delay = (0.0, 0.02)
    sandbox.world.create_organization("Acme")
    with pytest.raises(TimeoutError):
        sandbox.deliveries.wait_idle(0.1)
    assert (receiver.taken, sandbox.deliveries.counters.pending) == ([], 1)
    sandbox.knobs.paused = False
    sandbox.deliveries.wait_idle()
    assert receiver.ids() == event_ids(sandbox)


def test_endpoints_have_filters_and_secrets_of_their_own(sandbox: Sandbox, receiver: Receiver) -> None:
    sandbox.add_endpoint(receiver.url, SECRET, ["user.created"])  # the overlap of a rotation, for one type
    sandbox.add_endpoint(receiver.url, "another secret", ["user.updated"])
    user = sandbox.world.create_user("ada@acme.example")["id"]
    sandbox.world.update_user(user, first_name="Ada")
    sandbox.knobs.retries = 0
    sandbox.deliveries.wait_idle()
    assert Counter(event["event"] for event in receiver.taken) == {"user.created": 2, "user.updated": 1}
    assert sandbox.deliveries.counters.refused == 1  # 401 for the other secret
    assert sandbox.deliveries.counters.acknowledged == 2


def test_webhooks_follow_a_frozen_time(sandbox: Sandbox, receiver: Receiver) -> None:
    with freeze_time("2026-05-01T00:00:00Z"):
        sandbox.world.create_organization("Acme")
        sandbox.deliveries.wait_idle()
    assert receiver.taken[0]["created_at"] == "2026-05-01T00:00:00.000Z"
    assert receiver.signatures[0][1].startswith("t=1777593600000, v1=")


def test_a_port_in_use_is_reported(sandbox: Sandbox) -> None:
    with pytest.raises(OSError, match="in use"):
        Sandbox(port=sandbox.port).start()


# As a process


class Process:
    """`workos-sync sandbox`, and calls of its control endpoints."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "worker.cli", "sandbox", "--port", "0", *arguments]
        self.child = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        assert self.child.stdout is not None
        self.ready = json.loads(self.child.stdout.readline())

    def call(self, method: str, path: str, body: dict[str, Any] | None = None, key: str = "") -> Any:
        content = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        request = urllib.request.Request(self.ready["WORKOS_BASE_URL"] + path, content, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as refusal:
            with refusal:
                raise ValueError(f"{refusal.code}: {refusal.read().decode()}") from None


@pytest.fixture
def process() -> Iterator[Process]:
    started = Process()
    yield started
    started.child.kill()
    started.child.wait()
    assert started.child.stdout is not None
    started.child.stdout.close()


@pytest.mark.long
def test_the_sandbox_as_a_process(process: Process, receiver: Receiver) -> None:
    knobs = process.call("PUT", "/sandbox/knobs", {"duplicates": 0.1, "delay": [0, 0.001]})
    assert (knobs["duplicates"], knobs["delay"]) == (0.1, [0, 0.001])
    with pytest.raises(ValueError, match=r"400: .*no such knob"):
        process.call("PUT", "/sandbox/knobs", {"no such knob": 1})
    endpoint = process.call("POST", "/sandbox/endpoints", {"url": receiver.url, "secret": SECRET})
    assert endpoint["secret"] == SECRET
    made = process.call("POST", "/sandbox/operations", {"operation": "create_organization", "name": "Ours"})
    assert made["name"] == "Ours"
    quiet = {"operation": "update_organization", "organization_id": made["id"], "name": "Quiet", "silently": True}
    assert process.call("POST", "/sandbox/operations", quiet)["name"] == "Quiet"
    assert process.call("GET", "/sandbox/progress")["events"] == 1
    with pytest.raises(ValueError, match=r"400: .*unknown operation"):
        process.call("POST", "/sandbox/operations", {"operation": "truth"})
    process.call("POST", "/sandbox/faults", {"kind": "fail", "path": "/organizations", "status": 403})
    assert process.call("POST", "/sandbox/play", {"events": 10**6, "rate": 400})["playing"]
    progress = process.call("POST", "/sandbox/stop")
    assert not progress["playing"]
    progress = process.call("POST", "/sandbox/drain", {"timeout": 10})
    assert (progress["pending"], progress["acknowledged"]) == (0, progress["events"])
    records = process.call("GET", "/sandbox/records")
    assert [record["acknowledged"] for record in records.values()] == [True] * progress["events"]
    truth = process.call("GET", "/sandbox/truth")
    assert made["id"] in {organization["id"] for organization in truth["organizations"]}
    client = WorkOSClient(
        api_key=process.ready["WORKOS_API_KEY"], client_id="c", base_url=process.ready["WORKOS_BASE_URL"], max_retries=0
    )
    with pytest.raises(Exception, match="403"):
        client.organizations.list_organizations()
    assert len(client.organizations.list_organizations(limit=100).data) == len(truth["organizations"])
    client.close()
    page = {"kind": "answer", "path": "/organizations", "body": "<!doctype html>", "content_type": "text/html"}
    process.call("POST", "/sandbox/faults", page)
    with pytest.raises(ValueError, match="Expecting value"):
        process.call("GET", "/organizations", key=process.ready["WORKOS_API_KEY"])
    process.call("DELETE", "/sandbox/faults")
    assert process.call("GET", "/organizations", key=process.ready["WORKOS_API_KEY"])["data"]
    assert process.call("GET", "/sandbox/calls") == {"GET /organizations": 4}
    process.child.send_signal(signal.SIGTERM)
    assert process.child.wait(30) == 0
