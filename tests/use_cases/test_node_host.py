"""The example host in Node asks over HTTP for each request, and fails closed."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest
from sqlalchemy import Engine

from tests.support import JSON, made, serving
from tests.support.auto_join import apply_events
from tests.support.mirror import ORG
from tests.support.processes import eventually
from tests.support.stack.machine import free_ports
from tests.support.tail import filled, fresh
from webhooks.app import create_app
from worker.bootstrap import Services

NODE = shutil.which("node")
pytestmark = [pytest.mark.long, pytest.mark.skipif(NODE is None, reason="node is not installed")]

EXAMPLE = Path(__file__).parents[2] / "docs" / "example-host" / "host.mjs"
TOKEN = "a-token-of-the-host-s-own"
ANN = made("user.created")["data"]["id"]


@pytest.fixture
def services(local: Callable[..., Services]) -> Services:
    return local(api_tokens=TOKEN)


@pytest.fixture
def engine(services: Services) -> Engine:
    filled(services.engine)
    fresh(services.engine)
    role: JSON = {"role": {"slug": "admin"}, "roles": [{"slug": "admin"}], "status": "active"}
    membership = made("organization_membership.created", user_id=ANN, organization_id=ORG, **role)
    apply_events(services.engine, [made("organization.created"), made("user.created"), membership])
    return services.engine


@pytest.fixture
def mirror() -> Iterator[ExitStack]:
    """The context of the mirror's server; closing it stops the server."""
    with ExitStack() as running:
        yield running


@pytest.fixture
def status(services: Services, engine: Engine, mirror: ExitStack) -> Iterator[Callable[..., int]]:
    """A function that asks the host for the keys of a workspace, and returns the status of the answer."""
    address = mirror.enter_context(serving(create_app(services)))
    [port] = free_ports(1)
    settings = {"MIRROR_URL": address, "MIRROR_TOKEN": TOKEN, "PORT": str(port)}
    url = f"http://127.0.0.1:{port}"

    def ask(user_id: str = ANN, organization_id: str = ORG) -> int:
        path = f"{url}/workspaces/{organization_id}/keys"
        return httpx2.get(path, headers={"X-User": user_id}, timeout=10).status_code

    def listens() -> bool:
        try:
            return httpx2.get(url).status_code == 404
        except httpx2.ConnectError:
            return False

    with subprocess.Popen([str(NODE), str(EXAMPLE)], env=os.environ | settings) as process:
        try:
            eventually(listens, 20)
            yield ask
        finally:
            process.kill()


def test_only_an_admin_of_the_workspace_sees_its_keys(status: Callable[..., int], engine: Engine) -> None:
    assert status() == 200
    assert (status("user_of_others"), status(ANN, "org_of_others")) == (403, 403)
    apply_events(engine, [made("organization_membership.deleted", 5, user_id=ANN, organization_id=ORG)])
    assert status() == 403


def test_nobody_enters_while_the_mirror_is_stale(status: Callable[..., int], engine: Engine) -> None:
    fresh(engine, 100)
    assert status() == 503
    fresh(engine)
    assert status() == 200


def test_nobody_enters_while_the_mirror_does_not_answer(status: Callable[..., int], mirror: ExitStack) -> None:
    assert status() == 200
    mirror.close()
    assert status() == 503
