"""No text that other people choose becomes markup on a page under /ops."""

from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urlsplit

import pytest
from flask.testing import FlaskClient
from sqlalchemy import Connection, event, insert, update

from models.database import in_transaction
from models.tables import Audit, Drift, Event, Hook, HookDelivery, Join, Run
from models.types import db_now, db_now_plus
from tests.support import JSON, accept, apply_all, made
from tests.support.ops import TOKEN, sign_in
from webhooks.app import create_app
from worker.bootstrap import Services

EVIL = (
    """zqx"'><script>zqx()</script><img src=zqx onerror=zqx()><a href=javascript:zqx>{{7919*7907}}{%zqx%}</textarea>"""
)
EVIL_ID = """zqx"'><script>zqx()<script>?&#%2f%2e"""
COMPUTED = str(7919 * 7907)
ADDRESSES = {"href", "src", "action", "formaction", "data", "poster", "srcdoc", "xlink:href"}
ELEMENTS = {
    *("html", "head", "meta", "title", "link", "script", "body", "header", "nav", "main", "footer", "section", "div"),
    *("p", "h1", "h2", "h3", "a", "span", "strong", "b", "em", "small", "ul", "ol", "li", "dl", "dt", "dd", "table"),
    *(
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "form",
        "label",
        "input",
        "select",
        "option",
        "button",
        "pre",
        "code",
        "time",
    ),
    *("br", "ins", "del", "svg", "g", "rect", "line", "text", "figure", "figcaption", "details", "summary", "dialog"),
    "progress",
}


class Page(HTMLParser):
    """The elements and links that a browser would see in a page."""

    def __init__(self) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.forms: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ELEMENTS, tag
        given = {name: value or "" for name, value in attrs}
        assert not [name for name in given if "zqx" in name or name.startswith("on") or name == "style"], (tag, given)
        for name in ADDRESSES & given.keys():
            assert given[name].startswith(("/ops/", "?", "#")) or given[name] in {"/ops", ""}, (tag, name, given[name])
        if tag == "script":
            assert given["src"].startswith("/ops/static/")
        if tag == "a" and "href" in given:
            self.links.add(given["href"])
        if tag == "form" and given.get("method", "get").lower() == "post":
            self.forms.append(given["action"])

    handle_startendtag = handle_starttag


@pytest.fixture
def services(local: Callable[..., Services]) -> Services:
    key = {"workos_api_key": "sk_test", "workos_client_id": "client_test"}
    return local(
        ops_tokens=f"ann:{TOKEN}", hooks="product=https://host.example/hooks", hook_secrets=f"product:{SECRET}", **key
    )


SECRET = "whsec_" + "c2VjcmV0" * 4


@pytest.fixture
def world(services: Services) -> JSON:
    """Objects of every kind, with markup in every text."""
    endpoint = create_app(services).test_client()
    organization, user = f"org{EVIL_ID}", f"user{EVIL_ID}"
    parents: JSON = {"organization_id": organization, "user_id": user}
    evil_role = {"slug": EVIL}
    events = [
        made("organization.created", id=organization, name=EVIL, external_id=EVIL),
        made("user.created", id=user, email=f"{EVIL}@acme.example", first_name=EVIL, last_name=EVIL),
        made(
            "organization_membership.created",
            id=f"om{EVIL_ID}",
            role=evil_role,
            roles=[evil_role],
            status="active",
            **parents,
        ),
        made("organization_domain.created", id=f"dom{EVIL_ID}", organization_id=organization, domain=EVIL, state=EVIL),
        made(
            "organization_domain.verified",
            id="dom_1",
            organization_id=organization,
            domain="zqx.example",
            state="verified",
        ),
        made("organization_role.created", slug=EVIL_ID, organization_id=organization, name=EVIL, description=EVIL),
        made("permission.created", slug=EVIL_ID, name=EVIL, description=EVIL, resource_type_slug=EVIL),
        made(
            "connection.activated", id=f"conn{EVIL_ID}", organization_id=organization, name=EVIL, connection_type=EVIL
        ),
        made("organization.updated", 3, id=organization, name=f"{EVIL} again", event_id=f"event{EVIL_ID}"),
        made("user.updated", event_id=f"event_failed{EVIL_ID}") | {"data": {"id": None, "email": EVIL}},
        made("user.updated", event_id="event_failed") | {"event": EVIL_ID, "data": {EVIL: EVIL}},
    ]
    accept(endpoint, *events)
    apply_all(services.engine)
    in_transaction(services.engine, _records, organization, user)
    return {"organization": organization}


def _records(tx: Connection, organization: str, user: str) -> None:
    common: dict[str, Any] = {"requested_by": EVIL, "reason": EVIL, "error": EVIL, "organization_id": organization}
    for task, status in (("resync", "done"), ("replay", "failed"), ("catch_up", "failed")):
        selection = {"type": EVIL, "why": EVIL} if task == "replay" else None
        row = common | {"id": f"run_{task}", "task": task, "status": status, "selection": selection}
        tx.execute(insert(Run).values(**row, finished_at=db_now_plus(-60)))
    found = {
        "run_id": "run_resync",
        "organization_id": organization,
        "finding": "extra",
        "fields": {EVIL: [EVIL, None]},
    }
    for action in ("withheld", "repaired"):
        tx.execute(
            insert(Drift).values(**found, kind="organization", object_id=f"{organization}{action}", action=action)
        )
    tx.execute(insert(Hook).values(name="product", cursor=0, error=EVIL))
    failed = {"hook": "product", "kind": "organization", "object_id": organization, "status": "failed", "attempts": 3}
    tx.execute(insert(HookDelivery).values(**failed, change_id=1, due_at=db_now(), error=EVIL, traceback=EVIL))
    joined: dict[str, Any] = {"state": "failed", "reason": EVIL, "cause": "event", "cause_id": EVIL_ID, "error": EVIL}
    tx.execute(insert(Join).values(**joined, organization_id=organization, user_id=user, domain=EVIL))
    act = {"who": EVIL, "via": "page", "reason": EVIL, "details": {EVIL: EVIL}, "organization_id": organization}
    for action, kind in (("dismiss_event", "event"), ("block", "user"), ("replay", "run"), ("register", EVIL)):
        tx.execute(insert(Audit).values(**act, action=action, kind=kind, object_id=user))
    tx.execute(update(Event).where(Event.status == "failed", Event.id == "event_failed").values(error=EVIL))


def crawl(endpoint: FlaskClient) -> tuple[dict[str, str], set[str]]:
    """Follow every link; returns the pages, and the targets of their forms."""
    seen: dict[str, str] = {}
    forms: set[str] = set()
    wanted = {"/ops/", "/ops/sign-in"}
    while wanted:
        url = wanted.pop()
        answer = endpoint.get(url)
        assert answer.status_code in {200, 404}, (url, answer.status_code)
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"], url
        seen[url] = answer.get_data(as_text=True)
        page = Page()
        page.feed(seen[url])
        page.close()
        forms.update(page.forms)
        links = {f"{urlsplit(url).path}{link}" if link.startswith("?") else link for link in page.links}
        wanted |= {link.partition("#")[0] for link in links if "/static/" not in link} - {""} - seen.keys()
    return seen, forms


@pytest.mark.long
def test_no_external_text_becomes_markup(services: Services, world: JSON) -> None:
    endpoint = create_app(services).test_client()
    sign_in(endpoint)
    pages, forms = crawl(endpoint)
    assert [url for url, html in pages.items() if COMPUTED in html] == []
    shown = {url for url, html in pages.items() if "zqx" in html}
    adapter = endpoint.application.url_map.bind("localhost")
    endpoints = {adapter.match(urlsplit(url).path)[0] for url in shown}
    rules = endpoint.application.url_map.iter_rules()
    every = {rule.endpoint for rule in rules if rule.rule.startswith("/ops/") and "GET" in (rule.methods or ())}
    assert every - endpoints <= {"ops.static", "ops.sign_in", "ops.unknown_page", "ops.search_page"}, (
        "an attack was shown on each page"
    )
    assert len(forms) >= 8


@pytest.mark.long
def test_reading_pages_changes_nothing(services: Services, world: JSON) -> None:
    endpoint = create_app(services).test_client()
    sign_in(endpoint)
    statements: list[str] = []
    _note_writes(services, statements)
    pages, forms = crawl(endpoint)
    for url in forms - {"/ops/sign-in"}:
        assert endpoint.get(url).status_code in {404, 405}, url
    assert len(pages) > 20 and statements == []


def _note_writes(services: Services, statements: list[str]) -> None:
    @event.listens_for(services.engine, "before_cursor_execute")
    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if not statement.lstrip().upper().startswith(("SELECT", "PRAGMA", "BEGIN", "WITH")):
            statements.append(statement)
