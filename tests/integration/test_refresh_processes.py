"""A web process asks, and the process that tails reads from WorkOS: in `web` and `worker`, and in `up`."""

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import psutil
import pytest

from tests.support import JSON
from tests.support.processes import QUICK, Command, Commands, Valkey, eventually, listens
from tests.support.resync import quietly, settings_of
from tests.support.stack.machine import free_ports
from tests.support.tail import tail_pids
from worker.sandbox import Sandbox

pytestmark = pytest.mark.long

TOKEN = "refresher-token-0123456789"


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """An environment that sends no webhooks."""
    with Sandbox(seed=7) as running:
        yield running


@pytest.fixture
def membership(sandbox: Sandbox) -> JSON:
    """Of an admin, which the mirror has never seen."""
    organization, user = sandbox.world.create_organization("Acme"), sandbox.world.create_user("ann@acme.example")
    return sandbox.world.create_membership(organization["id"], user["id"], role="admin")


@pytest.fixture(params=["web and worker", "up"])
def started(
    request: pytest.FixtureRequest,
    make_database: Callable[[str], str],
    commands: Commands,
    sandbox: Sandbox,
    valkey: Valkey,
) -> tuple[list[Command], int]:
    """The commands that run, and the port. The events API is read only once a minute."""
    separate = request.param == "web and worker"
    commands.settings |= QUICK | settings_of(sandbox)
    commands.settings |= {"TAIL_SECONDS": 60, "LOG_FORMAT": "json", "REDIS_URL": valkey.url}
    commands.settings |= {"DATABASE_URL": make_database("postgresql" if separate else "sqlite")}
    commands.settings |= {"API_TOKENS": f"product:{TOKEN}", "API_REFRESH_NAMES": "product"}
    if separate:
        web, port = commands.web()
        return [web, commands.start("worker", "--processes", "1")], port
    [port] = free_ports(1)
    up = commands.start("up", PORT=port)
    eventually(lambda: listens(port) or up.process.poll() is not None, 30)
    return [up], port


def test_a_product_reads_its_own_writes(started: tuple[list[Command], int], sandbox: Sandbox, membership: JSON) -> None:
    running, port = started
    asked = {name: membership[name] for name in ("organization_id", "user_id")}
    world, id = sandbox.world, membership["id"]

    def refresh() -> Any:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        response = httpx2.post(f"http://127.0.0.1:{port}/api/v1/refresh", json=asked, headers=headers, timeout=10)
        return response.json()["access"]["role"] if response.status_code == 200 else response.status_code

    eventually(lambda: refresh() == "admin", 30)
    took = []
    for act, expected in (
        (lambda: world.update_membership(id, role="member"), "member"),
        (lambda: world.deactivate_membership(id), None),
        (lambda: world.reactivate_membership(id), "member"),
        (lambda: world.update_membership(id, role="admin"), "admin"),
        (lambda: world.delete_membership(id), None),
    ):
        quietly(world, act)
        began = time.monotonic()
        assert refresh() == expected
        took.append(time.monotonic() - began)
    print(f"median {statistics.median(took):.2f} s, longest {max(took):.2f} s")
    pid = tail_pids(running[-1])[-1]
    psutil.Process(pid).kill()
    quietly(world, lambda: world.create_membership(*asked.values()))
    eventually(lambda: refresh() == "member", 30)  # 202 until another process has the lease
    for command in running:
        command.stop(20)
