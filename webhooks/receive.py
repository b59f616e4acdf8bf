"""POST /webhooks/workos: verify a delivery, commit its event, wake a worker, respond."""

import hmac
import threading
from functools import partial
from http import HTTPStatus
from ipaddress import IPv4Network, IPv6Network, ip_network
from itertools import takewhile
from typing import NamedTuple, NoReturn

import structlog
from flask import Blueprint, Response, abort, jsonify, request
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from models.database import in_transaction
from models.ip_addresses import ip_of
from models.types import JsonObject
from webhooks.signature import verify
from worker.bootstrap import Services
from worker.decision.payload import is_id, parse_json
from worker.error_handling import describe
from worker.errors import InvalidSignatureError, PayloadError
from worker.group_commit import GroupCommit
from worker.inbox.store import ReceivedEvent, accept_webhooks
from worker.inbox.verified_secrets import note_verified
from worker.kinds import READERS
from worker.logs import Seldom
from worker.metrics import REFUSALS, REFUSED_SINCE_VALID, Counters, Name, Place
from worker.reports.doctor import WEBHOOK_PATH

log = structlog.get_logger()

RETRY_AFTER_SECONDS = 5
COMMIT_SECONDS = 7.0
"""Longer than the lock time-out. If a commit takes longer, the database counts as unavailable."""
MAX_EVENTS_PER_COMMIT = 100
SIGNATURE = "WorkOS-Signature"

Network = IPv4Network | IPv6Network


def blueprint(services: Services) -> Blueprint:
    """Return the webhook endpoint."""
    settings, counters = services.settings, services.counters
    secrets = [secret.get_secret_value() for secret in settings.workos_webhook_secrets]
    allowed = [ip_network(network) for network in settings.webhook_allowed_ips]
    path_token = settings.webhook_path_token.get_secret_value().encode() if settings.webhook_path_token else None
    # Commits in a separate thread: concurrent deliveries share a commit, and a frozen database delays no response.
    commit = GroupCommit(partial(_commit, services), MAX_EVENTS_PER_COMMIT)
    verified = _Verified(services.inbox_engine)
    routes = Blueprint("receive", __name__)

    @routes.before_request
    def check_size_and_sender() -> None:
        if (request.content_length or 0) > settings.webhook_max_bytes:
            abort(413)
        if allowed and not _is_allowed(request.remote_addr, allowed):
            log.warning("address_rejected")
            counters.add("refused", "address")
            if SIGNATURE in request.headers:
                counters.add(REFUSED_SINCE_VALID, "address")
            abort(403)

    @routes.post(WEBHOOK_PATH, defaults={"token": ""})
    @routes.post(f"{WEBHOOK_PATH}/<token>")
    def deliver(token: str) -> Response | tuple[Response, int]:
        if not hmac.compare_digest(token.encode("utf-8", "replace"), path_token or b""):
            abort(404)
        body = request.get_data(cache=False)
        if len(body) > settings.webhook_max_bytes:
            abort(413)  # Sent in chunks, so its size was not known earlier.
        try:
            header = request.headers.get(SIGNATURE)
            position = verify(body, header, secrets, settings.webhook_tolerance_seconds)
        except InvalidSignatureError as error:
            log.warning("signature_rejected", reason=error.reason)
            counters.add("refused", error.reason)
            counters.add(REFUSED_SINCE_VALID, error.reason)
            return jsonify(error=f"invalid signature: {error.reason}"), 401
        counters.note_time("secret_used", str(position + 1))
        counters.clear(*(Name(REFUSED_SINCE_VALID, (reason,)) for reason in REFUSALS))
        posted = _parse(body)
        try:
            new = commit(posted, seconds=COMMIT_SECONDS)
        except (SQLAlchemyError, TimeoutError) as error:
            # The commit may still succeed. The next delivery is then a duplicate.
            posted.log.warning("webhook_store_failed", error=describe(error))
            counters.add("received", "not_stored", posted.metric_type)
            response = jsonify(error="the event could not be stored; retry later")
            response.headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
            return response, 503
        verified(secrets[position])
        return jsonify(status="accepted" if new else "duplicate")

    return routes


class _Verified:
    """Records once for each secret that it has verified a delivery."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._known: set[str] = set()
        self._writing = threading.Lock()

    def __call__(self, secret: str) -> None:
        """Record a secret, unless that was done or is being done. After a failure, the next delivery tries again."""
        if secret in self._known or not self._writing.acquire(blocking=False):
            return
        try:
            in_transaction(self._engine, note_verified, secret)
            self._known.add(secret)
        except SQLAlchemyError as error:
            log.warning("verified_secret_not_stored", error=describe(error))
        finally:
            self._writing.release()


class Posted(NamedTuple):
    """A delivery with a valid signature, and a logger bound to its event's id, type and workspace."""

    delivery: ReceivedEvent
    log: structlog.typing.FilteringBoundLogger

    @property
    def metric_type(self) -> str:
        """The event's type as a label value: `other` for unknown types, so that senders cannot add series."""
        return self.delivery.type if self.delivery.type in READERS else "other"


def _commit(services: Services, group: list[Posted]) -> list[bool]:
    """Commit deliveries, wake a worker, and return whether each event is new.

    Logs here, in one thread, because several threads would wait for each other to log.
    """
    are_new = accept_webhooks(services.inbox_engine, [posted.delivery for posted in group])
    with services.counters.contained(Place.RING, services.bell.lane):  # they are stored, whatever happens now
        services.bell.ring()
    for posted, new in zip(group, are_new, strict=True):
        posted.log.info("webhook_accepted", new=new)
        services.counters.add("received", "accepted" if new else "duplicate", posted.metric_type)
    return are_new


class UnknownPaths:
    """Counts deliveries to paths that do not exist, and logs some of them."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._seldom = Seldom()  # anybody can post to such paths

    def __call__(self, response: Response) -> Response:
        """Count the request if it was a delivery that found no route, and return its response."""
        lost = response.status_code in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED)
        if lost and request.method == "POST" and SIGNATURE in request.headers:
            self._counters.add("refused", "path")
            self._counters.add(REFUSED_SINCE_VALID, "path")
            if self._seldom():
                log.warning("path_unknown", path=known_part(request.path))
        return response


def known_part(path: str) -> str:
    """Return a path up to its first unknown segment: the rest may contain WEBHOOK_PATH_TOKEN."""
    known = WEBHOOK_PATH.split("/")
    segments = path.split("/")
    same = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(known, segments, strict=False))))
    return "/".join([*segments[:same], *["..."] * (len(segments) > same)])


def _is_allowed(address: str | None, allowed: list[Network]) -> bool:
    try:
        sender = ip_of(address or "")
    except ValueError:
        return False
    return any(sender in network for network in allowed)


def _parse(body: bytes) -> Posted:
    """Return the delivery in a request body; respond with 400 if it is not an event."""
    try:
        event = parse_json(body)
    except (ValueError, RecursionError):
        _reject("the body is not JSON")
    try:
        delivery = ReceivedEvent.of(event, body)
    except PayloadError as error:
        _reject(f"the body is not an event: {error}")
    bound = log.bind(event_id=delivery.id, type=delivery.type, organization_id=_organization_id(event))
    return Posted(delivery, bound)


def _reject(reason: str) -> NoReturn:
    log.warning("payload_rejected", reason=reason)
    abort(400, reason)


def _organization_id(event: JsonObject) -> str | None:
    """Return the id of the workspace an event is about, for logs."""
    data = event.get("data")
    if not isinstance(data, dict):
        return None
    found = data.get("id") if event["event"].startswith("organization.") else data.get("organization_id")
    return found if isinstance(found, str) and is_id(found) else None
