"""An operator in a browser finds a failed event and its cause, fixes it, and approves deletions.

Real commands, a real PostgreSQL and Valkey, a sandbox WorkOS, and Debian's Chromium.
"""

import json
import os
import re
import shutil
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from sqlalchemy import Engine, select, update

from models.database import in_transaction, open_engine, read_transaction
from models.tables import Event
from models.views import mirror_status, workspaces
from tests.support import JSON, rows, sign
from tests.support.axe import RUN, axe_source
from tests.support.deliveries import deliver
from tests.support.processes import Command, Commands, Valkey, eventually
from tests.support.promtool import firing
from tests.support.resync import quietly, settings_of
from worker.sandbox import Knobs, Sandbox, populate

TOKEN = "ann-signs-in-with-this-token"
PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 900}
TIMEOUT_MS = 30_000
MAX_HEIGHT_PX = 2500
"""Of a page on a desktop."""
MAX_CARDS = 20
"""Rows of a page's tables, which are cards on a phone."""

pytestmark = pytest.mark.long


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(seed=7, knobs=Knobs(hold_back=0.2)) as running:
        populate(running.world, organizations=40, members=3)
        yield running


@pytest.fixture
def engine(make_database: Callable[[str], str]) -> Iterator[Engine]:
    opened = open_engine(make_database("postgresql"))
    yield opened
    opened.dispose()


@pytest.fixture
def web(engine: Engine, sandbox: Sandbox, commands: Commands, valkey: Valkey) -> tuple[Command, int]:
    """The web process of a running installation whose mirror is filled, and its port."""
    commands.settings |= settings_of(sandbox) | {
        "DATABASE_URL": engine.url.render_as_string(hide_password=False),
        "REDIS_URL": valkey.url,
        "WORKOS_RATE_SHARE": "1.0",
        "WORKER_PROCESSES": "1",
        "SWEEP_SECONDS": "0.5",
        "REPAIR_SECONDS": "0.5",
        "OPS_TOKENS": f"ann:{TOKEN}",
    }
    commands.start("worker")
    commands.start("clock")
    web = commands.web()
    eventually(lambda: rows(engine, mirror_status)[0]["state"] == "current", 60)
    return web


@pytest.fixture
def site(web: tuple[Command, int]) -> str:
    """The address of a running installation whose mirror is filled.

    A test asks for it before `page`, which then closes before the server ends, and misses no answer.
    """
    return f"http://127.0.0.1:{web[1]}"


def send(site: str, event: JSON) -> None:
    body = json.dumps(event).encode()
    request = urllib.request.Request(f"{site}/webhooks/workos", body, {"WorkOS-Signature": sign(body)})
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 200


def sign_in(page: Page, site: str) -> None:
    page.goto(f"{site}/ops/")
    page.get_by_label("Token").fill("a-wrong-token")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("status")).to_contain_text("Invalid token")
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("Mirror is")


def pictures(page: Page, name: str) -> None:
    """Check that the page fits a desktop and a phone, light and dark, and is accessible according to axe-core.

    Screenshots are saved if SCREENSHOTS is set.
    """
    folder, axe = os.environ.get("SCREENSHOTS"), axe_source()
    page.wait_for_load_state()
    for width, view in (("desktop", DESKTOP), ("phone", PHONE)):
        page.set_viewport_size(view)  # type: ignore[arg-type]  # a dict of the right shape
        overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert overflow <= 0, f"{name} on a {width} is wider than the screen by {overflow} px"
        assert width == "phone" or page.evaluate("document.documentElement.scrollHeight") <= MAX_HEIGHT_PX, name
        assert page.locator("main tbody tr").count() <= MAX_CARDS, name
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            if axe and (width == "desktop") is (scheme == "light"):
                if not page.evaluate("'axe' in window"):
                    page.evaluate(axe)
                assert page.evaluate(RUN) == [], f"{name} on a {width}, {scheme}"
            if folder:
                page.screenshot(path=Path(folder) / f"{name}-{width}-{scheme}.png", full_page=True)
    page.set_viewport_size(DESKTOP)  # type: ignore[arg-type]  # a dict of the right shape


def test_a_failed_event_is_found_and_replayed(
    site: str, page: Page, engine: Engine, sandbox: Sandbox, tmp_path: Path
) -> None:
    world = sandbox.world
    acme = world.create_organization("Acme", domains=[("acme.example", "verified")])
    for number in range(6):
        person = world.create_user(f"person{number}@acme.example")
        world.create_membership(acme["id"], person["id"], role="admin" if number == 0 else "member")
    fresh = [event for event in world.events if event["data"].get("organization_id") == acme["id"]]
    fresh += [event for event in world.events if "acme.example" in str(event["data"].get("email"))]
    broken = fresh[0]
    whole = json.dumps(broken).encode()
    send(site, next(event for event in world.events if event["data"]["id"] == acme["id"]))
    for event in fresh[1:]:
        send(site, event)
    send(site, broken | {"data": {**broken["data"], "id": None}})
    eventually(lambda: _status(engine, broken["id"]) == "failed", 30)

    sign_in(page, site)
    expect(page.get_by_role("heading", level=1)).to_have_text("Mirror is not trustworthy")
    expect(page.get_by_text("1 event failed")).to_be_visible()
    pictures(page, "overview")
    page.get_by_role("link", name="Failures").click()
    pictures(page, "failures")
    expect(page.locator(".group")).to_contain_text("data.id: is missing")
    expect(page.locator(".group").get_by_role("link", name="Acme")).to_be_visible()
    page.get_by_role("link", name=broken["id"]).click()
    expect(page.locator(".about")).to_contain_text("Acme")
    page.get_by_text("Show the payload").click()
    page.get_by_label("Find in the payload").fill(acme["id"])
    expect(page.locator("#payload mark").first).to_have_text(acme["id"])
    pictures(page, "event")
    # The fix: restore the payload.
    in_transaction(engine, lambda tx: tx.execute(update(Event).where(Event.id == broken["id"]).values(body=whole)))
    page.get_by_placeholder("Reason").first.fill("the cause is fixed")
    page.get_by_role("button", name="Replay").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("Replay")
    expect(page.locator("h1 .badge")).to_have_text("done")
    expect(page.locator("dd .badge.applied")).to_be_visible()  # without reloading
    expect(page.get_by_text("by ann")).to_be_visible()
    pictures(page, "replay")
    page.goto(f"{site}/ops/events/{broken['id']}")
    expect(page.locator("h1 .badge")).to_have_text("done")

    if shutil.which("promtool"):
        with urllib.request.urlopen(f"{site}/metrics") as answer:
            metrics = answer.read().decode()
        assert firing(tmp_path, metrics, metrics) == set(), "no alert while the mirror is correct"
    visit_other_pages(page, site, acme["id"])


def visit_other_pages(page: Page, site: str, organization_id: str) -> None:
    """Visit the pages that only show something; then sign out."""
    page.get_by_role("link", name="Events", exact=True).click()
    page.get_by_label("Select all events on this page").check()
    page.get_by_role("button", name="Replay or dismiss").click()
    expect(page.get_by_role("dialog")).to_contain_text(re.compile(r"The ticked events on this page \([1-9]\d*\)"))
    page.get_by_role("button", name="Cancel").click()
    pictures(page, "events")
    page.goto(f"{site}/ops/workspaces/{organization_id}")
    expect(page.get_by_text("person0@acme.example")).to_be_visible()
    pictures(page, "workspace")
    page.get_by_role("link", name="person0@acme.example").click()
    expect(page.get_by_text("active membership; neither the person nor the workspace is deleted")).to_be_visible()
    pictures(page, "explain")
    switch_auto_join_off(page, site, organization_id)
    page.get_by_role("link", name="People").click()
    page.get_by_label("E-mail or name").fill("person1@")
    page.get_by_role("button", name="Filter").click()
    expect(page.get_by_role("link", name="person1@acme.example")).to_be_visible()
    pictures(page, "people")
    page.get_by_role("button", name="Sign out").click()
    page.goto(f"{site}/ops/events")
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    pictures(page, "sign-in")


def confirm(page: Page, action: str, reason: str) -> None:
    """Give the reason in the open dialog, and confirm the action."""
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Reason").fill(reason)
    dialog.get_by_role("button", name=action).click()


def switch_auto_join_off(page: Page, site: str, organization_id: str) -> None:
    """Switch auto-join off for a workspace, and see the reason on the page."""
    page.goto(f"{site}/ops/workspaces/{organization_id}")
    page.get_by_role("link", name="Domains").click()
    page.get_by_role("button", name="Change auto-join").click()
    page.get_by_role("dialog").get_by_label("Auto-join").select_option("off")
    confirm(page, "Change auto-join", "contractors share the domain")
    page.get_by_role("link", name="Domains").click()
    expect(page.get_by_role("cell", name="switched off by ann: contractors share the domain")).to_be_visible()
    pictures(page, "workspace-switched-off")
    page.get_by_role("link", name="Auto-join", exact=True).click()
    page.get_by_role("link", name="Domains without auto-join").click()
    expect(page.get_by_role("link", name="acme.example", exact=True)).to_be_visible()
    pictures(page, "auto-join")
    page.get_by_role("link", name="Hooks").click()
    expect(page.get_by_text("No hooks are configured (HOOKS).")).to_be_visible()
    pictures(page, "hooks")


def test_withheld_deletions_are_shown_and_approved(site: str, page: Page, engine: Engine, sandbox: Sandbox) -> None:
    world = sandbox.world
    gone = sorted(list(world.organizations)[:25])
    world_names = [world.organizations[id]["name"] for id in gone]
    for organization_id in gone:
        quietly(world, lambda: world.delete_organization(organization_id))  # noqa: B023 - called now
    sign_in(page, site)
    page.get_by_role("button", name="Start full resync").click()
    expect(page.locator("h1 .badge")).to_have_text("done")
    expect(page.get_by_text("25 deletions are withheld")).to_be_visible()
    expect(page.get_by_role("link", name=world_names[0], exact=True).first).to_be_visible()
    assert _live(engine, gone) == 25
    pictures(page, "withheld")
    page.get_by_role("button", name="Approve 25 deletions").click()
    expect(page.get_by_role("dialog")).to_contain_text(re.compile(r"75 of \d+ people with access lose access"))
    confirm(page, "Approve 25 deletions", "they left")
    expect(page.locator("h1 .badge")).to_have_text("done")
    expect(page.get_by_text("by ann")).to_be_visible()
    assert _live(engine, gone) == 0
    page.goto(f"{site}/ops/")
    expect(page.get_by_role("heading", level=1)).to_have_text("Mirror is trustworthy, with warnings")
    expect(page.get_by_text("found 25 differences")).to_be_visible()
    pictures(page, "overview-right")
    page.get_by_role("link", name="Workspaces").click()
    pictures(page, "workspaces")
    page.get_by_role("link", name="Runs").click()
    pictures(page, "runs")
    page.get_by_role("link", name="Audit").click()
    expect(page.get_by_role("row").filter(has_text="approve deletions")).to_contain_text("they left")
    pictures(page, "audit")


def test_the_overview_is_green_amber_or_red_as_status_is(
    site: str, page: Page, web: tuple[Command, int], sandbox: Sandbox
) -> None:
    world = sandbox.world
    acme = world.create_organization("Acme", domains=[("acme.example", "verified")])
    send(site, next(event for event in world.events if event["data"]["id"] == acme["id"]))
    sign_in(page, site)
    heading = page.get_by_role("heading", level=1)
    expect(heading).to_have_text("Mirror is trustworthy")
    expect(page.locator(".verdict.good")).to_be_visible()
    pictures(page, "green")
    for _ in range(7):
        assert deliver(web[1], b"{}", signature=sign(b"{}", "wrong-secret-0123456789abcdef")) == 401
    expect(heading).to_have_text("Mirror is trustworthy, with warnings", timeout=TIMEOUT_MS)
    expect(page.locator(".verdict.warn")).to_be_visible()
    expect(
        page.get_by_text("7 deliveries were refused because of the signature since the last valid one")
    ).to_be_visible()
    pictures(page, "amber")
    broken = {"id": "event_broken", "event": "user.updated", "created_at": "2026-03-01T12:00:00.000Z", "data": None}
    send(site, broken)
    expect(heading).to_have_text("Mirror is not trustworthy", timeout=TIMEOUT_MS)
    expect(page.locator(".verdict.bad")).to_be_visible()
    pictures(page, "red")


def test_a_page_says_how_old_it_is_and_when_the_server_stopped_answering(
    site: str, page: Page, web: tuple[Command, int]
) -> None:
    sign_in(page, site)
    freshness = page.locator("#freshness")
    expect(freshness).to_have_text(re.compile(r"Updated \d+ s ago"))
    outage = page.get_by_role("alert")
    expect(outage).to_be_hidden()
    processes = web[0].family()
    for process in processes:
        process.suspend()
    try:
        expect(outage).to_have_text(
            re.compile(r"The server has not answered since \d\d:\d\d:\d\d UTC\."), timeout=TIMEOUT_MS
        )
        expect(page.locator("body.stale")).to_be_visible()
        pictures(page, "no-answer")
    finally:
        for process in processes:
            process.resume()
    expect(page.locator("body.stale")).to_have_count(0, timeout=TIMEOUT_MS)
    expect(outage).to_be_hidden()
    use_the_frame(page, site)


def use_the_frame(page: Page, site: str) -> None:
    """Use what all pages have: the search, exact times, ids to copy, the skip link and the menu of the phone."""
    page.locator("#chart g").last.hover()
    expect(page.locator("#tip")).to_contain_text("events per minute")
    page.keyboard.press("/")
    page.keyboard.type("no such name")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Nothing matches.")).to_be_visible()
    pictures(page, "search")
    page.goto(f"{site}/ops/runs")
    page.locator("main time").first.click()
    expect(page.locator("#tip")).to_have_text(re.compile(r"\d\d:\d\d:\d\d UTC\s+20\d\d-"))
    page.goto(f"{site}/ops/people")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    page.set_viewport_size(PHONE)  # type: ignore[arg-type]  # a dict of the right shape
    audit = page.get_by_role("link", name="Audit")
    expect(audit).to_be_hidden()
    page.get_by_role("button", name="Menu").click()
    audit.click()
    expect(page.get_by_role("heading", name="Audit")).to_be_visible()


def _status(engine: Engine, event_id: str) -> str | None:
    with read_transaction(engine) as tx:
        return tx.execute(select(Event.status).where(Event.id == event_id)).scalar_one_or_none()


def _live(engine: Engine, organization_ids: list[str]) -> int:
    return sum(
        row["organization_id"] in organization_ids and row["state"] == "active" for row in rows(engine, workspaces)
    )
