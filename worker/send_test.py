"""Sends a signed test delivery to the webhook endpoint, and reports whether it arrived and was processed."""

import hashlib
import hmac
import json
import time
import uuid
from datetime import UTC, datetime
from difflib import get_close_matches
from http import HTTPStatus
from typing import NamedTuple

import httpx2
from sqlalchemy import Engine, select

from models.database import read_transaction
from models.outcomes import Outcome
from models.tables import Event, EventStatus
from models.types import JsonObject
from worker.errors import ConfigurationError
from worker.inbox.store import TEST_HEADER, TEST_TYPE
from worker.kinds import READERS
from worker.settings import Settings
from worker.webhook_endpoints import ANSWER_SECONDS, FIND_WEB, NO_ANSWER, webhook_path

POLL_SECONDS = 0.05
REMEDIES = {
    401: "web has another secret: set the same WORKOS_WEBHOOK_SECRETS there as here",
    403: "WEBHOOK_ALLOWED_IPS does not name this sender: add its address, or send from an allowed one",
    404: FIND_WEB,
    503: "web cannot store events now: run workos-sync doctor",
}
"""HTTP status → why `web` answers it, and the remedy."""


class SentTest(NamedTuple):
    """The result of a test delivery."""

    event_id: str
    url: str
    """Without WEBHOOK_PATH_TOKEN."""
    status: int | None
    """The HTTP status of the answer; None if there was none."""
    answered_seconds: float
    outcome: str | None
    """`ignored` once a worker has processed the event; None until then."""
    processed_seconds: float | None
    """Time from the answer to the end of the processing."""
    problem: str | None
    """The problem, with the remedy; None if the event arrived and was processed."""

    def lines(self) -> list[str]:
        """Return what happened, step by step, for people."""
        steps = [f"posted test event {self.event_id} to {self.url}"]
        if self.status == HTTPStatus.OK:
            steps.append(f"accepted in {self.answered_seconds * 1000:.0f} ms")
        if self.processed_seconds is not None and self.problem is None:
            steps.append(f"processed {self.processed_seconds:.1f} s later: {self.outcome}, as every test event")
        return steps if self.problem is None else [*steps, f"failed: {self.problem}"]


def send_test(engine: Engine, settings: Settings, type: str, base_url: str, *, wait_seconds: float = 10.0) -> SentTest:
    """Post a test event to the `web` at `base_url`, such as `http://127.0.0.1:8000`, and wait until it is processed.

    The event has the type `workos_sync.test`, which the drain ignores, and so changes nothing in the mirror. `type` is
    a mirrored event type, and only chooses the sample in its data.

    Raises:
        ConfigurationError: `type` is not mirrored, or no webhook secret is set.
    """
    if not settings.workos_webhook_secrets:
        raise ConfigurationError("WORKOS_WEBHOOK_SECRETS is not set, so a test event cannot be signed")
    event = {
        "id": f"test_{uuid.uuid4().hex}",
        "event": TEST_TYPE,
        "created_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "data": {"sample": sample(type)},
    }
    body = json.dumps(event).encode()
    headers = {
        "Content-Type": "application/json",
        "WorkOS-Signature": _signature(body, settings.workos_webhook_secrets[0].get_secret_value()),
        TEST_HEADER: "1",
    }
    start = time.monotonic()
    status, problem = _post(f"{base_url}{webhook_path(settings)}", body, headers)
    answered = time.monotonic()
    url = f"{base_url}{webhook_path(settings, masked=True)}"
    result = SentTest(str(event["id"]), url, status, answered - start, None, None, problem)
    return result if problem else _followed(engine, result, answered, wait_seconds)


def _post(url: str, body: bytes, headers: dict[str, str]) -> tuple[int | None, str | None]:
    """Return the status of the answer, or None if there is none; and what is wrong, with the remedy."""
    # HTTP is for an address of this machine or network, and the URL contains WEBHOOK_PATH_TOKEN: not for HTTP_PROXY.
    through_proxy = url.startswith("https:")
    try:
        status = httpx2.post(
            url, content=body, headers=headers, timeout=ANSWER_SECONDS, trust_env=through_proxy
        ).status_code
    except NO_ANSWER as error:
        return None, f"no answer ({type(error).__name__}): start web, or name its address"
    remedy = REMEDIES.get(status, "see the log of web")
    return status, None if status == HTTPStatus.OK else f"answered {status}: {remedy}"


def sample(type: str) -> JsonObject:
    """Return a sample event of a mirrored type, with made-up ids; raise `ConfigurationError` for any other type."""
    if type not in READERS:
        near = get_close_matches(type, READERS)
        hint = f"did you mean {' or '.join(near)}?" if near else f"the types are {', '.join(sorted(READERS))}"
        raise ConfigurationError(f"{type} is not a mirrored event type; {hint}")
    kind, _ = READERS[type]
    return {"event": type, "data": {"object": kind.object, "id": f"{kind.name}_sample"}}


def _signature(body: bytes, secret: str) -> str:
    """Return the header with which WorkOS signs a body (docs/workos.md, Webhooks and their signature)."""
    now = int(time.time() * 1000)
    digest = hmac.new(secret.encode(), f"{now}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={now}, v1={digest}"


def _followed(engine: Engine, result: SentTest, answered: float, wait_seconds: float) -> SentTest:
    """Wait until the event is processed; return the result with what was found."""
    query = select(Event.status, Event.outcome).where(Event.id == result.event_id)
    while True:
        with read_transaction(engine) as tx:
            row = tx.execute(query).one_or_none()
        waited = time.monotonic() - answered
        if row is None:
            return result._replace(problem="web accepted it into another database: compare DATABASE_URL there and here")
        if row.status != EventStatus.PENDING:
            outcome = row.outcome or row.status
            problem = None if outcome == Outcome.IGNORED else f"it ended as {outcome}, not ignored: see its page"
            return result._replace(outcome=str(outcome), processed_seconds=waited, problem=problem)
        if waited > wait_seconds:
            waits = f"stored, but not processed within {wait_seconds:.0f} s"
            return result._replace(problem=f"{waits}: start worker, or run workos-sync status")
        time.sleep(POLL_SECONDS)
