"""POST /webhooks/workos: verify, store, commit, ring, answer."""

import hmac
from functools import partial
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any, NamedTuple, NoReturn

import structlog
from flask import Blueprint, Response, abort, jsonify, request
from sqlalchemy.exc import SQLAlchemyError

from webhooks.signature import InvalidSignatureError, verify
from worker.bootstrap import Services
from worker.decision.handlers import HANDLERS
from worker.decision.payload import is_id, parse_json
from worker.errors import PayloadError
from worker.group_commit import GroupCommit
from worker.inbox.store import Delivery, accept_webhooks

log = structlog.get_logger()

RETRY_AFTER_SECONDS = 5
COMMIT_SECONDS = 7.0
"""Longer than any wait for a lock; a database that takes longer is away."""
MAX_EVENTS_PER_COMMIT = 100
"""Deliveries in one commit."""

Network = IPv4Network | IPv6Network


def blueprint(services: Services) -> Blueprint:
    """Return the route that takes deliveries."""
    settings, counters = services.settings, services.counters
    secrets = [secret.get_secret_value() for secret in settings.workos_webhook_secrets]
    allowed = [ip_network(network) for network in settings.webhook_allowed_ips]
    path_token = settings.webhook_path_token.get_secret_value().encode() if settings.webhook_path_token else None
    # In a thread of its own: a frozen database cannot hold an answer back, and many deliveries share one commit.
    commit = GroupCommit(partial(_commit, services), MAX_EVENTS_PER_COMMIT)
    routes = Blueprint("receive", __name__)

    @routes.before_request
    def refuse_strangers() -> None:
        if (request.content_length or 0) > settings.webhook_max_bytes:
            abort(413)
        if allowed and not _from(allowed, request.remote_addr):
            log.warning("webhook_refused", reason="address")
            counters.add("refused", "address")
            abort(403)

    @routes.post("/webhooks/workos", defaults={"token": ""})
    @routes.post("/webhooks/workos/<token>")
    def deliver(token: str) -> Response | tuple[Response, int]:
        if not hmac.compare_digest(token.encode("utf-8", "replace"), path_token or b""):
            abort(404)
        body = request.get_data(cache=False)
        if len(body) > settings.webhook_max_bytes:
            abort(413)  # sent in chunks: no length told its size before
        try:
            place = verify(body, request.headers.get("WorkOS-Signature"), secrets, settings.webhook_tolerance_seconds)
        except InvalidSignatureError as refused:
            log.warning("webhook_refused", reason=refused.reason)
            counters.add("refused", refused.reason)
            counters.note_time("refused", refused.reason)
            return jsonify(error=f"signature refused: {refused.reason}"), 401
        counters.note_time("secret_used", str(place + 1))
        posted = _posted(body)
        try:
            new = commit(posted, seconds=COMMIT_SECONDS)
        except (SQLAlchemyError, TimeoutError) as error:
            # Too late for this answer, it may yet be committed: then the next delivery is a duplicate.
            posted.log().warning("webhook_not_stored", error=type_name(error))
            counters.add("received", "not_stored", posted.shown_type)
            answer = jsonify(error="the event could not be stored; send it again")
            answer.headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
            return answer, 503
        return jsonify(status="accepted" if new else "duplicate")

    return routes


class Posted(NamedTuple):
    """A delivery that is well signed, and the workspace it is about, for log lines."""

    delivery: Delivery
    organization_id: str | None

    @property
    def shown_type(self) -> str:
        """The event's type as metrics show it: what anyone may send makes no new series."""
        return self.delivery.type if self.delivery.type in HANDLERS else "other"

    def log(self) -> Any:
        """Return the logger with what the delivery is about."""
        return log.bind(event_id=self.delivery.id, type=self.delivery.type, organization_id=self.organization_id)


def _commit(services: Services, together: list[Posted]) -> list[bool]:
    """Commit deliveries, ring, and tell of them: in one thread, for many that write to one log wait for each other."""
    news = accept_webhooks(services.inbox_engine, [posted.delivery for posted in together])
    services.bell.ring()
    for posted, new in zip(together, news, strict=True):
        posted.log().info("webhook_accepted", new=new)
        services.counters.add("received", "accepted" if new else "duplicate", posted.shown_type)
    return news


def type_name(error: Exception) -> str:
    """Return what kind of error it is, without what it says."""
    return (getattr(error, "orig", None) or error).__class__.__name__


def _from(allowed: list[Network], address: str | None) -> bool:
    try:
        caller = ip_address(address or "")
    except ValueError:
        return False
    return any(caller in network for network in allowed)


def _posted(body: bytes) -> Posted:
    """Return what was posted; answers 400 for what is not an event."""
    try:
        event = parse_json(body)
    except (ValueError, RecursionError):
        _malformed("the body is not JSON")
    try:
        return Posted(Delivery.of(event, body), _organization_id(event))
    except PayloadError as error:
        _malformed(f"the body is no event: {error}")


def _malformed(why: str) -> NoReturn:
    log.warning("webhook_malformed", reason=why)
    abort(400, why)


def _organization_id(event: dict[str, Any]) -> str | None:
    """Return the workspace an event is about, for log lines."""
    data = event.get("data")
    if not isinstance(data, dict):
        return None
    found = data.get("id") if event["event"].startswith("organization.") else data.get("organization_id")
    return found if isinstance(found, str) and is_id(found) else None
