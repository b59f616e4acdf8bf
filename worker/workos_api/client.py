"""The calls of the WorkOS API that this program makes, within the rate limits, with retries where they can help."""

import math
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple, TypeGuard

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt

from models.types import JsonObject
from worker import traces
from worker.backoff import backoff
from worker.decision.payload import clean
from worker.errors import (
    BadRequestError,
    DeadlinePassedError,
    InvalidApiKeyError,
    NotFoundError,
    RateLimitedError,
    WorkOSError,
)
from worker.workos_api.bucket import ALL, REVOKES, USER_READS, USER_WRITES, Buckets
from worker.workos_api.calls import NOTHING, Answer, CallError

if TYPE_CHECKING:
    from worker.workos_api.sdk import Sdk

PAGE = 100
"""Items on a page; WorkOS's maximum."""
MAX_CURSOR = 1000
MAX_TRIES = 5
FIRST_WAIT_SECONDS = 0.25
MAX_WAIT_SECONDS = 60.0
MAX_QUOTED = 300
"""Upper bound on the characters quoted from a message of WorkOS."""
BAD_REQUESTS = (HTTPStatus.BAD_REQUEST, HTTPStatus.CONFLICT, HTTPStatus.UNPROCESSABLE_ENTITY)
MEMBERSHIPS = ("user_management", "organization_memberships")
WORDS = frozenset(
    (
        *("authorization", "connections", "deactivate", "events", "invitations", "organization_domains"),
        *("organization_memberships", "organizations", "permissions", "revoke", "roles", "sessions"),
        *("user_management", "users", "webhook_endpoints"),
    )
)
"""The segments of paths that are no ids."""


class Page(NamedTuple):
    """A page of a listing: raw items, the cursor of the next page (None: the last page), and WorkOS's time, in UTC."""

    items: list[object]
    after: str | None
    read_at: datetime


class ReadResult(NamedTuple):
    """An object read by id (None: WorkOS's own 404 says that it is gone), and WorkOS's time, in UTC."""

    item: JsonObject | None
    read_at: datetime


class LastPageError(WorkOSError):
    """WorkOS returned `page` without a usable cursor, so that the next page cannot be fetched."""

    def __init__(self, message: str, page: Page) -> None:
        super().__init__(message)
        self.page = page


class WorkOSClient:
    """Reads objects, listings and events; writes webhook endpoints and memberships; ends sessions.

    Each call waits for a token of the rate limits. Unless a method says otherwise, it raises `InvalidApiKeyError`
    (WorkOS's own 401 or 403), `BadRequestError` (400, 409, 422), `RateLimitedError` (429), `NotFoundError` (WorkOS's
    own 404 to a listing or a write), `WorkOSError` (anything else, for reads after a few retries), and
    redis-py's `RedisError` if the Redis of the rate limits is unavailable.

    Args:
        sdk: makes the calls.
        buckets: the rate limits.
        count: called with `workos_calls` for each call, and with `workos_limited` for each 429.
        max_tries: how often a read is tried.

    Attributes:
        calls: the number of calls so far.
    """

    def __init__(self, sdk: "Sdk", buckets: Buckets, count: Callable[[str], None], max_tries: int = MAX_TRIES) -> None:
        self._sdk = sdk
        self._buckets = buckets
        self._count = count
        self._max_tries = max_tries
        self._counting = threading.Lock()
        self.calls = 0
        self.close = sdk.close

    def list_page(
        self, path: tuple[str, ...], params: JsonObject | None = None, after: str | None = None, *, paged: bool = True
    ) -> Page:
        """Return the page after the cursor `after` (None: the first) of the listing at `path`, oldest objects first.

        A listing that is not `paged` is returned whole.
        """
        # The documented defaults of `order` differ. In ascending order, new objects are added at the end of a listing.
        paging = {"limit": PAGE, "order": "asc", **({"after": after} if after else {})} if paged else {}
        body, read_at = self._listing(path, {**(params or {}), **paging})
        items, metadata = body["data"], body.get("list_metadata")
        if not paged:
            return Page(items, None, read_at)
        cursor = (metadata.get("after") or None) if isinstance(metadata, dict) else False  # False is refused below
        if cursor is not None and (cursor == after or not _is_cursor(cursor)):
            raise LastPageError(f"/{'/'.join(path)} returned no usable cursor", Page(items, None, read_at))
        return Page(items, cursor, read_at)

    def read(self, path: tuple[str, ...], kind: str, id_field: str = "id") -> ReadResult:
        """Read the object at `path`; raise `WorkOSError` if WorkOS returns another one.

        The object's `object` must be `kind`, and its field `id_field` must be equal to the last segment of the path.
        """
        try:
            item, read_at = self._call(path, {})
        except NotFoundError as error:
            return ReadResult(None, error.read_at)
        wanted = {id_field: path[-1]} | ({"object": kind} if "object" in item else {})
        return ReadResult(_require(kind, item, wanted), read_at)

    def memberships_of(self, organization_id: str, user_id: str) -> Page:
        """List a person's memberships of every status in an organization: at most one."""
        pair = {"organization_id": organization_id, "user_id": user_id}
        page = self.list_page(MEMBERSHIPS, {**pair, "statuses": "active,inactive,pending"})
        for item in page.items:
            _require("organization_memberships", item, pair)
        return page

    def events(
        self, types: Sequence[str], after: str | None = None, start: datetime | None = None, end: datetime | None = None
    ) -> Page:
        """List events, oldest first, after an event id or in a range of time (not both). Times are aware."""
        times = {"range_start": start, "range_end": end}
        filters = {name: _stamp(time) for name, time in times.items() if time is not None}
        return self.list_page(("events",), {"events": ",".join(types), **filters}, after)

    def create_membership(self, organization_id: str, user_id: str, role: str, deadline: float) -> JsonObject:
        """Make a user a member and return the membership; an inactive one is activated (docs/workos.md, Memberships).

        `role` is a slug. `deadline`, in seconds of `time.monotonic`, is the time after which nothing is sent.

        Raises:
            DeadlinePassedError: the deadline has passed; nothing was sent.
            BadRequestError: WorkOS refuses it; the membership may already exist.
            NotFoundError: the organization, user or role does not exist.
            RateLimitedError: a rate limit is used up; nothing was done.
            WorkOSError: it may or may not have been done.
        """
        pair = {"organization_id": organization_id, "user_id": user_id}
        made = self._send("post", MEMBERSHIPS, {**pair, "role_slug": role}, deadline)
        return _require("organization_memberships", made, pair)

    def deactivate_membership(self, id: str) -> JsonObject:
        """Make an active membership inactive and return it; raise as `create_membership`."""
        return _require("organization_memberships", self._send("put", (*MEMBERSHIPS, id, "deactivate"), {}), {"id": id})

    def sessions_of(self, user_id: str, after: str | None = None) -> Page:
        """List a user's sessions in all organizations and in none, impersonated ones included.

        The items are not checked, so that an invalid one does not hide the others.
        """
        return self.list_page(("user_management", "users", user_id, "sessions"), after=after)

    def wait_to_revoke(self) -> None:
        """Wait until the limit on revocations allows one.

        Call it before the check that precedes each `revoke_session`: the check must not be outdated by the wait.
        """
        self._buckets.take(REVOKES)

    def revoke_session(self, id: str) -> None:
        """End a session; raise as `create_membership`. WorkOS may answer without a body."""
        self._send_for_nothing("post", ("user_management", "sessions", "revoke"), {"session_id": id})

    def webhook_endpoints(self, after: str | None) -> Page:
        """List webhook endpoints, oldest first."""
        return self.list_page(("webhook_endpoints",), after=after)

    def create_webhook_endpoint(self, url: str, types: Sequence[str]) -> JsonObject:
        """Create a webhook endpoint and return it. WorkOS shows its secret only here.

        Raises:
            BadRequestError: WorkOS does not accept the URL, or has an endpoint with it.
        """
        return self._send("post", ("webhook_endpoints",), {"endpoint_url": url, "events": list(types)})

    def update_webhook_endpoint(self, id: str, types: Sequence[str]) -> JsonObject:
        """Enable an endpoint, with exactly these event types."""
        return self._send("patch", ("webhook_endpoints", id), {"events": list(types), "status": "enabled"})

    def delete_webhook_endpoint(self, id: str) -> None:
        """Delete an endpoint: WorkOS sends nothing more to it.

        Raises:
            NotFoundError: WorkOS has no endpoint with this id.
            WorkOSError: it may or may not have been done.
        """
        self._send_for_nothing("delete", ("webhook_endpoints", id), {})

    def now(self) -> datetime:
        """Return WorkOS's time, in UTC and whole seconds. Makes a call, so it also shows whether WorkOS answers."""
        return self._listing(("organizations",), {"limit": 1, "order": "asc"}).read_at

    def _listing(self, path: tuple[str, ...], params: JsonObject) -> Answer:
        answer = self._call(path, params)
        if not isinstance(answer.body.get("data"), list):
            raise WorkOSError(f"/{'/'.join(path)} returned no list")
        return answer

    def _call(self, path: tuple[str, ...], params: JsonObject) -> Answer:
        """Read, with retries."""
        tries = Retrying(
            retry=retry_if_exception(lambda error: isinstance(error, CallError) and error.can_pass),
            stop=stop_after_attempt(self._max_tries),
            wait=_wait,
            reraise=True,
        )
        try:
            return tries(self._once, "get", path, params)
        except CallError as error:
            # A read sends only ids and names of event types, so WorkOS's message may be quoted.
            raise _translated(error, path, quoted=error.body.get("message")) from error

    def _send(self, method: str, path: tuple[str, ...], body: JsonObject, deadline: float = math.inf) -> JsonObject:
        """Write, without retries: a write without an answer may have been done."""
        try:
            return self._once(method, path, body, deadline).body
        except CallError as error:
            raise _translated(error, path) from error

    def _send_for_nothing(self, method: str, path: tuple[str, ...], body: JsonObject) -> None:
        """Write, as `_send`, what WorkOS may answer without a body."""
        try:
            self._once(method, path, body)
        except CallError as error:
            if error.name != NOTHING:
                raise _translated(error, path) from error

    def _once(self, method: str, path: tuple[str, ...], sent: JsonObject, deadline: float = math.inf) -> Answer:
        user_limit = USER_READS if method == "get" else USER_WRITES
        self._buckets.take(ALL, *((user_limit,) if path[0] == "user_management" else ()))
        if time.monotonic() > deadline:  # after the wait for a token
            raise DeadlinePassedError(f"/{'/'.join(path[:2])}: not sent, it is too late")
        with self._counting:
            self.calls += 1
        self._count("workos_calls")
        with traces.span("workos.call", method=method.upper(), route=route(path)) as span:
            try:
                return self._sdk.call(method, path, sent)
            except CallError as error:
                span.note(status=error.status)
                if error.status == HTTPStatus.TOO_MANY_REQUESTS:
                    self._count("workos_limited")
                raise


def route(path: tuple[str, ...]) -> str:
    """Return a path for traces, with `{id}` in place of every segment that is not a word of the API."""
    return "".join(f"/{segment}" if segment in WORDS else "/{id}" for segment in path)


def open_client(
    api_key: str,
    client_id: str,
    base_url: str | None,
    buckets: Buckets,
    count: Callable[[str], None] = lambda _: None,
    *,
    timeout_seconds: float = 20.0,
    max_tries: int = MAX_TRIES,
) -> WorkOSClient:
    """Return a client of one WorkOS environment.

    `base_url` replaces WorkOS's own; the timeout is for each call; the other arguments are those of `WorkOSClient`.
    """
    from worker.workos_api.sdk import Sdk  # noqa: PLC0415 - takes half a second, so only processes that call WorkOS

    return WorkOSClient(Sdk(api_key, client_id, base_url, timeout_seconds), buckets, count, max_tries)


def _translated(error: CallError, path: tuple[str, ...], quoted: object = None) -> Exception:
    translated = _by_status(error, path, quoted)
    if isinstance(translated, WorkOSError):
        translated.status = error.status
    return translated


def _by_status(error: CallError, path: tuple[str, ...], quoted: object) -> Exception:
    if error.is_refused_key:
        return InvalidApiKeyError(f"WORKOS_API_KEY: WorkOS refuses the key ({error.status})")
    message = f"/{'/'.join(path[:2])}: {error}"
    if error.is_gone and error.read_at is not None:  # otherwise it cannot be ordered among events
        return NotFoundError(message, error.read_at)
    if error.status in BAD_REQUESTS:
        return BadRequestError(
            f"{message}: {clean(quoted)[:MAX_QUOTED].rstrip('.')}" if isinstance(quoted, str) else message
        )
    limited = error.status == HTTPStatus.TOO_MANY_REQUESTS
    return RateLimitedError(message) if limited else WorkOSError(message)


def _require(what: str, item: object, wanted: JsonObject) -> JsonObject:
    """Return a JSON object that has these fields; raise `WorkOSError` for anything else."""
    if isinstance(item, dict) and all(item.get(name) == value for name, value in wanted.items()):
        return item
    raise WorkOSError(f"{what}: WorkOS returned something other than the requested object")


def _is_cursor(value: object) -> TypeGuard[str]:
    """Return whether the database and a URL can hold a cursor."""
    return isinstance(value, str) and value.isascii() and value.isprintable() and len(value) <= MAX_CURSOR


def _wait(state: RetryCallState) -> float:
    """Return the seconds to wait before a retry: those that WorkOS asked for, or an exponential back-off."""
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, CallError) and error.retry_after is not None:
        return min(error.retry_after, MAX_WAIT_SECONDS)
    return backoff(state.attempt_number, FIRST_WAIT_SECONDS, MAX_WAIT_SECONDS)


def _stamp(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
