"""On call: five faults are visible on the overview within five seconds, and solved by following links only.

The server and the worker's work run in this process; the browser is Debian's Chromium.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import pytest
from playwright.sync_api import Page, expect
from sqlalchemy import Engine, update

from models.database import in_transaction
from models.tables import Event
from tests.support import JSON, accept, apply_all, fake_workers, post, serving, sign
from tests.support.auto_join import mark_as_filled
from tests.support.hooks import SECRET as HOOK_SECRET
from tests.support.hooks import follow_all
from tests.support.ops import TOKEN
from tests.support.resync import client_of, mirror_of, quietly, resync, settings_of
from tests.support.tail import fresh
from webhooks.app import create_app
from worker.bootstrap import Services
from worker.errors import HookError
from worker.processes.clock import heartbeat
from worker.repair.work import Repair
from worker.sandbox import Sandbox
from worker.workos_api.client import WorkOSClient

pytestmark = pytest.mark.long

SOON_MS = 5000
WORKSPACES = 4
DELETED = WORKSPACES
"""Workspaces that disappear: all, so a resync withholds the deletion, and too few for the condition of drift."""
PROBLEMS = (
    "No worker is running",
    "1 event failed",
    "3 deliveries were refused because of the signature since the last valid one (3 wrong)",
    f"withholds {DELETED} deletions",
    "1 delivery to the hook crm failed",
)


class Installation:
    """An installation over a sandbox WorkOS, and what its worker, its product and WorkOS do."""

    def __init__(self, services: Services, sandbox: Sandbox, workos: WorkOSClient) -> None:
        self.engine, self.world = services.engine, sandbox.world
        self.app = create_app(services)
        self.endpoint = self.app.test_client()
        self.hook_answers = True
        self._services = services
        self._workos = workos
        self._repair = Repair(self.engine, workos, services.settings, services.bell)
        self._live = mirror_of(self.engine, sandbox, workos, WORKSPACES)
        mark_as_filled(self.engine)
        fresh(self.engine)
        heartbeat(self.engine)
        self.deliver()
        self.work()

    def _new_event(self) -> JSON:
        self.world.create_user(f"person{len(self.world.users)}@acme.example")
        return self.world.events[-1]

    def work(self) -> None:
        """Do what a worker does."""
        self._repair.work_on_all()
        apply_all(self.engine)
        self.call_hook()
        self._repair.work_on_all()

    def call_hook(self) -> None:
        def target(_message: JSON) -> None:
            if not self.hook_answers:
                raise HookError("answered 503")

        follow_all(self.engine, {"crm": target}, attempts=1)

    def fail_event(self) -> JSON:
        """Receive an event without its object's id, which a worker cannot use; returns it as it should be."""
        whole = self._new_event()
        accept(self.endpoint, whole | {"data": {**whole["data"], "id": None}})
        apply_all(self.engine)
        return whole

    def refuse(self, number: int) -> None:
        for _ in range(number):
            wrong = sign(b"{}", "wrong-secret-0123456789abcdef")
            answer = self.endpoint.post("/webhooks/workos", data=b"{}", headers={"WorkOS-Signature": wrong})
            assert answer.status_code == 401
        self._services.counters.hand_over()

    def deliver(self) -> None:
        """Receive a valid delivery, as with the right secret."""
        assert post(self.endpoint, self._new_event()).status_code == 200
        self._services.counters.hand_over()

    def withhold(self) -> None:
        for organization_id in sorted(self._live["organization"])[:DELETED]:
            quietly(self.world, lambda: self.world.delete_organization(organization_id))  # noqa: B023 - called now
        resync(self.engine, self._workos)

    def fail_hook(self) -> None:
        self.deliver()
        apply_all(self.engine)
        self.hook_answers = False
        self.call_hook()


@pytest.fixture
def installation(
    make_database: Callable[[str], str], build_test_services: Callable[..., Services]
) -> Iterator[Installation]:
    with Sandbox(seed=7) as sandbox:
        services = build_test_services(
            database_url=make_database("sqlite"),
            ops_tokens=f"ann:{TOKEN}",
            hooks="crm=http://127.0.0.1:1/",
            hook_secrets=f"crm:{HOOK_SECRET}",
            **{name.lower(): value for name, value in settings_of(sandbox).items()},
        )
        with closing(client_of(sandbox, services.redis)) as workos:
            yield Installation(services, sandbox, workos)


@pytest.fixture
def site(installation: Installation) -> Iterator[str]:
    """The address of its server. Requested before `page`, which then closes before the server ends."""
    with serving(installation.app) as address:
        yield address


def restore(engine: Engine, event: JSON) -> None:
    """Repair the payload of an event in the inbox: the fix of its cause."""
    whole = json.dumps(event).encode()
    in_transaction(engine, lambda tx: tx.execute(update(Event).where(Event.id == event["id"]).values(body=whole)))


def test_five_faults_are_seen_and_solved_from_the_overview(
    installation: Installation, redis_url: str, site: str, page: Page
) -> None:
    with ExitStack() as workers:
        workers.enter_context(fake_workers.registered(redis_url, "hooks"))
        heading = page.get_by_role("heading", level=1)
        page.goto(f"{site}/ops/")
        page.get_by_label("Token").fill(TOKEN)
        page.get_by_role("button", name="Sign in").click()
        expect(heading).to_have_text("Mirror is trustworthy")

        installation.fail_hook()
        whole = installation.fail_event()
        installation.withhold()
        installation.refuse(3)
        workers.close()
        for sentence in PROBLEMS:  # the page is neither reloaded nor left
            expect(page.locator(".conditions").get_by_role("link", name=sentence)).to_be_visible(timeout=SOON_MS)
        expect(heading).to_have_text("Mirror is not trustworthy")

        def follow(sentence: str) -> None:
            page.get_by_role("link", name="Overview").click()
            page.get_by_role("link", name=sentence).click()

        follow("No worker is running")
        expect(page.locator("#workers").get_by_text("none running")).to_have_count(3)
        workers.enter_context(fake_workers.registered(redis_url, "hooks"))
        follow("3 deliveries were refused")
        expect(page.locator("#chart")).to_contain_text("refused 3")
        installation.deliver()

        follow("1 event failed")
        restore(installation.engine, whole)
        page.get_by_placeholder("Reason").fill("the payload is restored")
        page.get_by_role("button", name="Replay all").click()
        expect(heading).to_contain_text("Replay")
        installation.work()
        expect(page.locator("h1 .badge")).to_have_text("done")

        follow(f"withholds {DELETED} deletions")
        expect(
            page.get_by_text(f"{DELETED * 2} of {WORKSPACES * 2} people with access lose access").first
        ).to_be_visible()
        page.get_by_role("button", name=f"Approve {DELETED} deletions").click()
        page.get_by_role("dialog").get_by_label("Reason").fill("they left")
        page.get_by_role("dialog").get_by_role("button", name="Approve").click()
        installation.work()
        expect(page.locator("h1 .badge")).to_have_text("done")

        follow("to the hook crm failed")
        installation.hook_answers = True
        page.get_by_placeholder("Reason").fill("the product answers again")
        page.get_by_role("button", name="Retry all").click()
        installation.work()

        fresh(installation.engine)
        heartbeat(installation.engine)
        page.get_by_role("link", name="Overview").click()
        expect(heading).to_have_text("Mirror is trustworthy")
        page.get_by_role("link", name="Audit").click()
        for action, reason in (
            ("replay", "the payload is restored"),
            ("approve deletions", "they left"),
            ("retry deliveries", "the product answers again"),
        ):
            row = page.get_by_role("row").filter(has_text=reason)
            expect(row).to_contain_text(action)
            expect(row).to_contain_text("ann")
