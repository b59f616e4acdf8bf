"""A short crash drill with every kind of fault at least once. `make drill` runs the long one."""

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from redis import Redis

from tests.drill.faults import all_faults
from tests.drill.hosts import Host
from tests.drill.proxy import Proxy
from tests.support.processes import Valkey, eventually
from tests.support.stack.machine import ROOT

pytestmark = pytest.mark.long

MUST_BE_NONE = {
    "acknowledged events lost",
    "events lost",
    "applied twice",
    "failed",
    "changes that the follower missed, or saw twice or late",
    "differences from WorkOS",
    "drift that the resync at the end found",
    "changes that the good hook never received",
    "objects whose changes it received out of order",
    "changes that it received late, beside a slow one",
    "status wrong for longer than 30 s",
    "faults that went otherwise than they must",
}


@pytest.mark.timeout(1800)
def test_no_fault_loses_an_event_or_applies_it_twice(tmp_path: Path) -> None:
    report = tmp_path / "drill.json"
    drill = [sys.executable, "-m", "tests.drill", "--short", "--json", str(report)]
    run = subprocess.run(drill, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert run.returncode == 0, run.stdout
    found = json.loads(report.read_text())
    assert found["faults"].keys() == {f"{fault.kind}: {fault.target}" for fault in all_faults()}
    assert {name: found["numbers"][name] for name in MUST_BE_NONE} == dict.fromkeys(MUST_BE_NONE, 0)
    assert found["numbers"]["events made by WorkOS"] == found["numbers"]["events applied"] > 1000


def test_the_proxy_leads_new_connections_elsewhere_and_keeps_the_old(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("v")
    servers = [Valkey(folder / str(place)) for place in range(2)]
    for place, server in enumerate(servers):
        server.start()
        with server.client() as redis:
            redis.set("place", place)
    proxy = Proxy(servers[0].socket)
    try:
        with Redis(port=proxy.port) as before, Redis(port=proxy.port) as after:
            assert before.get("place") == b"0"
            proxy.lead_to(servers[1].socket)
            assert (before.get("place"), after.get("place")) == (b"0", b"1")
    finally:
        proxy.close()
        for server in servers:
            server.kill()


def test_a_slow_host_sends_its_answer_in_pieces_and_a_good_one_at_once() -> None:
    host = Host()
    change = json.dumps({"data": {"id": 7, "kind": "user", "object_id": "user_1"}}).encode()

    def begin() -> socket.socket:
        client = socket.create_connection(("127.0.0.1", int(host.url.rpartition(":")[2].partition("/")[0])), timeout=5)
        client.sendall(b"POST /hook HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(change) + change)
        return client

    try:
        with host.slowed(), begin() as client:
            assert (client.recv(100), client.recv(100)) == (b"H", b"T")
        assert host.took == {}, "it has accepted nothing"
        with begin() as client:
            assert client.recv(100).startswith(b"HTTP/1.1 204 ")
        assert host.took.keys() == {7} and host.order == {("user", "user_1"): [7]}
    finally:
        host.close()


def test_the_proxy_survives_clients_that_disconnect_while_it_swallows(quick_folder: Path) -> None:
    valkey = Valkey(quick_folder)
    valkey.start()
    proxy = Proxy(quick_folder / "v.sock")

    def pinged() -> bytes:
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as client:
            client.sendall(b"PING\r\n")
            return client.recv(100)

    try:
        assert pinged() == b"+PONG\r\n"
        swallowing = threading.Thread(target=proxy.swallow, args=(0.5,))
        swallowing.start()
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", proxy.port)) as leaving:
                leaving.sendall(b"PING\r\n")
        swallowing.join()
        assert eventually(lambda: _or_reset(pinged), 5) == b"+PONG\r\n"
        proxy.reset()
        proxy.refuse(0.01)
        assert pinged() == b"+PONG\r\n"
    finally:
        proxy.close()
        valkey.kill()


def _or_reset(pinged: Callable[[], bytes]) -> bytes:
    try:
        return pinged()
    except ConnectionError:
        return b""
