"""POST /webhooks/workos: verify a delivery, commit its event, respond, wake a worker."""

import hmac
from collections import Counter
from http import HTTPStatus
from ipaddress import IPv4Network, IPv6Network, ip_network
from itertools import takewhile
from typing import NamedTuple, NoReturn

import structlog
from flask import Blueprint, Response, abort, jsonify, request
from sqlalchemy.exc import SQLAlchemyError
from werkzeug.exceptions import MethodNotAllowed

from models.database import in_transaction, is_unforeseen
from models.ip_addresses import ip_of
from models.types import JsonObject
from webhooks.group_commit import AsyncGroupCommit
from webhooks.signature import verify
from worker import traces
from worker.bootstrap import Services
from worker.decision.payload import is_id, parse_json
from worker.error_handling import describe
from worker.errors import InvalidSignatureError, PayloadError
from worker.inbox.store import TEST_HEADER, TEST_TYPE, ReceivedEvent, accept_test, accept_webhooks
from worker.inbox.verified_secrets import note_verified
from worker.kinds import READERS
from worker.metrics import REFUSALS, REFUSED, REFUSED_SINCE_VALID, Counters, Name, Place
from worker.throttle import LogThrottle
from worker.webhook_endpoints import WEBHOOK_PATH

log = structlog.get_logger()

RETRY_AFTER_SECONDS = 5
COMMIT_SECONDS = 7.0
"""Longer than the lock time-out. If a commit takes longer, the database counts as unavailable."""
MAX_EVENTS_PER_COMMIT = 100
SIGNATURE = "WorkOS-Signature"
STORED = {True: b'{"status":"accepted"}\n', False: b'{"status":"duplicate"}\n'}
"""The response, by whether the event is new."""

Network = IPv4Network | IPv6Network


def blueprint(services: Services) -> Blueprint:
    """Return the webhook endpoint."""
    settings, counters = services.settings, services.counters
    secrets = [secret.get_secret_value() for secret in settings.workos_webhook_secrets]
    allowed = [ip_network(network) for network in settings.webhook_allowed_ips]
    path_token = settings.webhook_path_token.get_secret_value().encode() if settings.webhook_path_token else None
    inbox = _Inbox(services)
    commit = AsyncGroupCommit(inbox.store, inbox.announce, MAX_EVENTS_PER_COMMIT, COMMIT_SECONDS)
    routes = Blueprint("receive", __name__)

    @routes.before_request
    def check_size_and_sender() -> None:
        if (request.content_length or 0) > settings.webhook_max_bytes:
            abort(413)
        if allowed and not _is_allowed(request.remote_addr, allowed):
            log.warning("address_rejected")
            _count_refused(counters, "address", claimed=SIGNATURE in request.headers)
            abort(403)

    @routes.get(WEBHOOK_PATH, defaults={"token": ""})
    @routes.get(f"{WEBHOOK_PATH}/<token>")
    def refuse_get(token: str) -> NoReturn:
        """Answer 404 or 405, by which `register` and `doctor` learn whether a URL leads here with the right token."""
        _require_path_token(token, path_token)
        raise MethodNotAllowed(["POST"])

    @routes.post(WEBHOOK_PATH, defaults={"token": ""})
    @routes.post(f"{WEBHOOK_PATH}/<token>")
    def deliver(token: str) -> Response | tuple[Response, int]:
        _require_path_token(token, path_token)
        body = request.get_data(cache=False)
        if len(body) > settings.webhook_max_bytes:
            abort(413)  # Sent in chunks, so its size was not known earlier.
        try:
            header = request.headers.get(SIGNATURE)
            position = verify(body, header, secrets, settings.webhook_tolerance_seconds)
        except InvalidSignatureError as error:
            log.warning("signature_rejected", reason=error.reason)
            _count_refused(counters, error.reason)
            return jsonify(error=f"invalid signature: {error.reason}"), 401
        _count_valid(counters, position)
        posted = _parse(body, secrets[position])
        event, organization_id = posted.event, posted.organization_id
        try:
            with traces.span("commit", event_id=event.id, event_type=event.type, organization_id=organization_id):
                new = commit(posted)
        except (SQLAlchemyError, TimeoutError) as error:
            # The commit may still succeed. The next delivery is then a duplicate.
            log.warning("webhook_not_stored", about=posted.named, error=describe(error))
            counters.add("received", "not_stored", posted.metric_type)
            response = jsonify(error="the event could not be stored; retry later")
            response.headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
            return response, 503
        return Response(STORED[new], content_type="application/json")

    return routes


class Posted(NamedTuple):
    """An event from a delivery, and the secret that verified the delivery."""

    event: ReceivedEvent
    organization_id: str | None
    secret: str

    @property
    def named(self) -> dict[str, object]:
        """The event's id, type and workspace, for logs."""
        return {"id": self.event.id, "type": self.event.type, "organization_id": self.organization_id}

    @property
    def is_test(self) -> bool:
        """Whether an operator sent it. It counts nowhere as a delivery of WorkOS."""
        return self.event.type == TEST_TYPE

    @property
    def metric_type(self) -> str:
        """The event's type as a label value: `other` for unknown types, so that senders cannot add series."""
        return self.event.type if self.event.type in READERS else "other"


class _Inbox:
    """Stores groups of deliveries, one group at a time."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._latest_secrets: set[str] = set()
        self._recorded_secrets: set[str] = set()

    def store(self, group: list[Posted]) -> list[bool]:
        """Commit deliveries and return, for each, whether its event is new.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: the commit failed, or its result is unknown.
        """
        try:
            with traces.within(posted.event.traceparent for posted in group):
                are_new = self._accept(group)
        except SQLAlchemyError as error:
            if is_unforeseen(error):  # the senders get 503 for it, and try again
                self._services.counters.report(Place.REQUEST, "receive.deliver", error)
            raise
        log.info("webhooks_stored", events=[p.named | {"new": new} for p, new in zip(group, are_new, strict=True)])
        types = [(p.metric_type, new) for p, new in zip(group, are_new, strict=True) if not p.is_test]
        for (metric_type, new), number in Counter(types).items():
            self._services.counters.add("received", "accepted" if new else "duplicate", metric_type, number=number)
        self._latest_secrets = {posted.secret for posted in group if not posted.is_test}
        return are_new

    def _accept(self, group: list[Posted]) -> list[bool]:
        engine, from_workos = self._services.inbox_engine, [posted.event for posted in group if not posted.is_test]
        are_new = iter(accept_webhooks(engine, from_workos) if from_workos else [])
        return [accept_test(engine, posted.event) if posted.is_test else next(are_new) for posted in group]

    def announce(self) -> None:
        """Wake a worker for the events that were stored, and record which secrets verified them."""
        with self._services.counters.contained(Place.RING, self._services.bell.lane):
            self._services.bell.ring()
        for secret in self._latest_secrets - self._recorded_secrets:  # after a failure, the next delivery tries again
            with self._services.counters.contained(Place.RING, "verified_secret"):
                in_transaction(self._services.inbox_engine, note_verified, secret)
                self._recorded_secrets.add(secret)


class UnknownPaths:
    """Counts deliveries that got 404 or 405, and logs at most one every 10 s."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._may_log = LogThrottle()  # anybody can post to such paths

    def __call__(self, response: Response) -> Response:
        """Count the request if it was such a delivery, and return its response."""
        lost = response.status_code in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED)
        if lost and request.method == "POST" and SIGNATURE in request.headers:
            _count_refused(self._counters, "path")
            if self._may_log():
                log.warning("path_unknown", path=known_part(request.path))
        return response


def _count_refused(counters: Counters, reason: str, *, claimed: bool = True) -> None:
    """Count a refused delivery. With `claimed`, it may come from WorkOS, and also counts for the conditions.

    A test event does not count for the conditions. Anybody can send its header, so it does count for the metrics.
    """
    counters.add(REFUSED, reason)
    if claimed and TEST_HEADER not in request.headers:
        counters.add(REFUSED_SINCE_VALID, reason)


def _count_valid(counters: Counters, position: int) -> None:
    """Record that the secret at `position` has verified a delivery, and restart the counts of refused ones.

    A test event does neither. It is known by its header, because the body is not parsed yet.
    """
    if TEST_HEADER not in request.headers:
        counters.note_time("secret_used", str(position + 1))
        counters.clear(*(Name(REFUSED_SINCE_VALID, (reason,)) for reason in REFUSALS))


def known_part(path: str) -> str:
    """Return a path up to its first unknown segment: the rest may contain WEBHOOK_PATH_TOKEN."""
    known = WEBHOOK_PATH.split("/")
    segments = path.split("/")
    same = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(known, segments, strict=False))))
    return "/".join([*segments[:same], *["..."] * (len(segments) > same)])


def _require_path_token(token: str, expected: bytes | None) -> None:
    """Respond with 404 to a path with another token."""
    if not hmac.compare_digest(token.encode("utf-8", "replace"), expected or b""):
        abort(404)


def _is_allowed(address: str | None, allowed: list[Network]) -> bool:
    try:
        sender = ip_of(address or "")
    except ValueError:
        return False
    return any(sender in network for network in allowed)


def _parse(body: bytes, secret: str) -> Posted:
    """Return the event in a request body; respond with 400 if there is none."""
    try:
        event = parse_json(body)
    except (ValueError, RecursionError):
        _reject("the body is not JSON")
    try:
        received = ReceivedEvent.of(event, body)
    except PayloadError as error:
        _reject(f"the body is not an event: {error}")
    return Posted(received, _organization_id(event), secret)


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
