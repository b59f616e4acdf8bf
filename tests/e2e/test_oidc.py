"""An operator signs in at an identity provider, in a browser."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.support.processes import Commands, Valkey, eventually, listens
from tests.support.stack.machine import free_ports

pytestmark = pytest.mark.long


@pytest.fixture
def issuer() -> Iterator[str]:
    """The address of a provider that is a process of its own."""
    [port] = free_ports(1)
    provider = [sys.executable, "-W", "ignore", "-m", "oidc_provider_mock", "--port", str(port)]
    claims = '{"sub": "ann", "email": "ann@acme.example", "email_verified": true}'
    with subprocess.Popen(
        [*provider, "--user-claims", claims], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        eventually(lambda: listens(port), 20)
        yield f"http://127.0.0.1:{port}"
        server.kill()


def test_an_operator_signs_in_at_the_provider_and_out_again(
    issuer: str, commands: Commands, valkey: Valkey, make_database: Callable[[str], str], page: Page
) -> None:
    """`page` comes last, so that it closes before the servers end, and misses no answer."""
    commands.settings |= {
        "DATABASE_URL": make_database("sqlite"),
        "REDIS_URL": valkey.url,
        "OPS_ALLOWED": "ann@acme.example",
    }
    commands.settings |= {
        "OIDC_ISSUER": issuer,
        "OIDC_CLIENT_ID": "pages",
        "OIDC_CLIENT_SECRET": "a-secret-of-this-client",
    }
    others = re.compile(r"^https:|/favicon\.ico$")  # which the provider's own page asks for
    page.context.route(others, lambda route: route.fulfill(status=200, body=""))
    _, port = commands.web(WEB_PROCESSES=1)
    page.goto(f"http://127.0.0.1:{port}/ops/events")
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=f"{folder}/oidc.png")
    page.get_by_role("link", name="Sign in with 127.0.0.1").click()
    page.get_by_role("button", name="ann").click()
    expect(page).to_have_url(f"http://127.0.0.1:{port}/ops/events")
    expect(page.get_by_text("ann@acme.example")).to_be_visible()
    page.get_by_role("link", name="Audit").click()
    expect(page.locator("main")).to_contain_text("ann@acme.example")
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
