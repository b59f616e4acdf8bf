"""WorkOS: what can be asked of it, within its rate limits, again where asking again helps."""

import math
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt

from worker.backoff import backoff
from worker.decision.payload import clean
from worker.errors import (
    BadRequestError,
    DeadlinePassedError,
    InvalidApiKeyError,
    NotFoundError,
    RateLimitedError,
    WorkOSUnavailableError,
)
from worker.workos_api.bucket import ALL, USER_READS, USER_WRITES, Buckets
from worker.workos_api.calls import Answer, CallError, Json

if TYPE_CHECKING:
    from worker.workos_api.sdk import Sdk

PAGE = 100
"""The most WorkOS lists at once."""
MAX_CURSOR = 1000
MAX_TRIES = 5
FIRST_WAIT_SECONDS = 0.25
MAX_WAIT_SECONDS = 60.0
MAX_QUOTED = 300
"""Characters of WorkOS's own message."""


class Page(NamedTuple):
    """Part of a listing: the raw items, the cursor of the next page (None: the last), and WorkOS's time, in UTC."""

    items: list[Any]
    after: str | None
    read_at: datetime


class ReadResult(NamedTuple):
    """An object read by id, None if WorkOS's own 404 says that it is gone; and WorkOS's time, in UTC."""

    item: Json | None
    read_at: datetime


class LastPageError(WorkOSUnavailableError):
    """WorkOS listed `page`, but nothing by which the next page could be asked for."""

    def __init__(self, message: str, page: Page) -> None:
        super().__init__(message)
        self.page = page


ERRORS: dict[int, type[WorkOSUnavailableError]] = {
    400: BadRequestError,
    409: BadRequestError,
    422: BadRequestError,
    429: RateLimitedError,
}


class WorkOSClient:
    """WorkOS: reads of everything, and writes of webhook endpoints and, for those who join by domain, memberships.

    Each call waits for a token of the rate limits. Unless a method says otherwise, it raises `InvalidApiKeyError`
    (WorkOS's own 401 or 403), `BadRequestError` (400, 409, 422), `RateLimitedError` (429), `NotFoundError` (WorkOS's
    own 404 to a listing or a write), `WorkOSUnavailableError` (anything else, after a few tries if they can help), and
    redis-py's `RedisError` if the Redis of the rate limits does not answer.

    Args:
        sdk: makes the calls, each once, so that every call takes a token.
        buckets: the rate limits.
        count: told the name of what happened: `workos_calls`, and `workos_limited` for a 429.
    """

    def __init__(self, sdk: "Sdk", buckets: Buckets, count: Callable[[str], None]) -> None:
        self._sdk = sdk
        self._buckets = buckets
        self._count = count
        self.close = sdk.close
        self.calls = Counter()

    def list_page(
        self, path: tuple[str, ...], params: Json | None = None, after: str | None = None, *, paged: bool = True
    ) -> Page:
        """List objects, oldest first.

        Args:
            path: the segments of the path.
            params: query parameters.
            after: the cursor of the page; None for the first.
            paged: False for a listing that WorkOS answers at once, without cursors.
        """
        return self._list(path, params or {}, after) if paged else self._whole(path)

    def read(self, path: tuple[str, ...], kind: str, id_field: str = "id") -> ReadResult:
        """Read one object.

        Args:
            path: the segments of the path; the last one identifies the object.
            kind: WorkOS's `object`; an answer that says it is another is unreadable.
            id_field: the field that must be equal to the last segment.
        """
        try:
            item, read_at = self._call(path, {})
        except NotFoundError as error:
            return ReadResult(None, error.read_at)
        wanted = {id_field: path[-1]} | ({"object": kind} if "object" in item else {})
        return ReadResult(_require(kind, item, wanted), read_at)

    def memberships_of(self, organization_id: str, user_id: str) -> Page:
        """List a person's memberships of every status in an organization: one at most."""
        whose = {"organization_id": organization_id, "user_id": user_id}
        filters = {**whose, "statuses": "active,inactive,pending"}
        page = self._list(("user_management", "organization_memberships"), filters, None)
        for item in page.items:
            _require("organization_memberships", item, whose)
        return page

    def events(
        self,
        types: Sequence[str],
        *,
        after: str | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
    ) -> Page:
        """List events, oldest first, after an event id or from a time on (not both); times are aware."""
        filters = {"events": ",".join(types)}
        if start is not None:
            filters["range_start"] = _stamp(start)
        if end is not None:
            filters["range_end"] = _stamp(end)
        return self._list(("events",), filters, after)

    def create_membership(self, organization_id: str, user_id: str, role: str, deadline: float) -> Json:
        """Make a user a member and return the membership; an inactive one is activated (docs/workos.md, Memberships).

        Args:
            organization_id: the organization.
            user_id: the user.
            role: the slug of the role.
            deadline: seconds of `time.monotonic`; after it nothing is sent.

        Raises:
            TooLateError: the deadline has passed; nothing was sent.
            BadRequestError: WorkOS refuses it; one may be there already.
            NotFoundError: there is no such organization, user or role.
            RateLimitedError: a rate limit is used up; nothing was done.
            WorkOSUnavailableError: it may have been done, or not.
        """
        whose = {"organization_id": organization_id, "user_id": user_id}
        path = ("user_management", "organization_memberships")
        return _require(path[-1], self._send("post", path, {**whose, "role_slug": role}, deadline), whose)

    def deactivate_membership(self, id: str) -> Json:
        """Make an active membership inactive and return it; raises as `create_membership`."""
        path = ("user_management", "organization_memberships", id, "deactivate")
        return _require("organization_memberships", self._send("put", path, {}), {"id": id})

    def webhook_endpoints(self, after: str | None) -> Page:
        """List webhook endpoints, oldest first."""
        return self._list(("webhook_endpoints",), {}, after)

    def create_webhook_endpoint(self, url: str, types: Sequence[str]) -> Json:
        """Create a webhook endpoint and return it: the only time that WorkOS shows its secret.

        Raises:
            BadRequestError: WorkOS does not take the URL, or has it already.
        """
        return self._send("post", ("webhook_endpoints",), {"endpoint_url": url, "events": list(types)})

    def update_webhook_endpoint(self, id: str, types: Sequence[str]) -> Json:
        """Have an endpoint enabled, with exactly these event types."""
        return self._send("patch", ("webhook_endpoints", id), {"events": list(types), "status": "enabled"})

    def now(self) -> datetime:
        """Ask WorkOS for its time, in UTC, whole seconds: a call like any other."""
        return self._listing(("organizations",), {"limit": 1, "order": "asc"}).read_at

    def _list(self, path: tuple[str, ...], filters: Json, after: str | None) -> Page:
        # The documented defaults of `order` disagree; ascending, new objects land at the end of a running listing.
        params = {**filters, "limit": PAGE, "order": "asc", **({"after": after} if after else {})}
        answer, read_at = self._listing(path, params)
        items, metadata = answer["data"], answer.get("list_metadata")
        cursor = (metadata.get("after") or None) if isinstance(metadata, dict) else False
        if cursor is not None and (not isinstance(cursor, str) or cursor == after or not _is_cursor(cursor)):
            raise LastPageError(f"/{'/'.join(path)} answered no usable cursor", Page(items, None, read_at))
        return Page(items, cursor, read_at)

    def _whole(self, path: tuple[str, ...]) -> Page:
        answer, read_at = self._listing(path, {})
        return Page(answer["data"], None, read_at)

    def _listing(self, path: tuple[str, ...], params: Json) -> Answer:
        answer = self._call(path, params)
        if not isinstance(answer.body.get("data"), list):
            raise WorkOSUnavailableError(f"/{'/'.join(path)} answered no list")
        return answer

    def _call(self, path: tuple[str, ...], params: Json) -> Answer:
        """Read; raises as the class says."""
        tries = Retrying(
            retry=retry_if_exception(_can_pass), stop=stop_after_attempt(MAX_TRIES), wait=_wait, reraise=True
        )
        try:
            return tries(self._once, "get", path, params=params)
        except CallError as error:
            translated = _translated(error, path)
            message = error.body.get("message")
            if isinstance(translated, BadRequestError) and isinstance(message, str):
                # A read sends ids and names of event types only, so WorkOS's message may be quoted.
                raise BadRequestError(f"{translated}: {clean(message)[:MAX_QUOTED]}") from error
            raise translated from error

    def _send(self, method: str, path: tuple[str, ...], body: Json, deadline: float = math.inf) -> Json:
        """Write, once: whether a write that was not answered was made is not known. Raises as `_call`."""
        try:
            return self._once(method, path, body=body, deadline=deadline).body
        except CallError as error:
            raise _translated(error, path) from error

    def _once(
        self,
        method: str,
        path: tuple[str, ...],
        params: Json | None = None,
        body: Json | None = None,
        deadline: float = math.inf,
    ) -> Answer:
        limit = USER_READS if method == "get" else USER_WRITES
        self._buckets.take(ALL, *((limit,) if path[0] == "user_management" else ()))
        if time.monotonic() > deadline:  # only now: a token may have been waited for
            raise DeadlinePassedError(f"/{'/'.join(path[:2])}: not sent, it is too late")
        self.calls.add()
        self._count("workos_calls")
        try:
            return self._sdk.call(method, path, params, body)
        except CallError as error:
            if error.status == HTTPStatus.TOO_MANY_REQUESTS:
                self._count("workos_limited")
            raise


class Counter:
    """Counts, from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.total = 0

    def add(self) -> None:
        """Count one more."""
        with self._lock:
            self.total += 1


def open_client(
    api_key: str,
    client_id: str,
    base_url: str | None,
    buckets: Buckets,
    count: Callable[[str], None] = lambda _: None,
    *,
    timeout_seconds: float = 20.0,
) -> WorkOSClient:
    """Return WorkOS as the settings name it."""
    from worker.workos_api.sdk import Sdk  # noqa: PLC0415 - half a second, for those who call WorkOS only

    return WorkOSClient(Sdk(api_key, client_id, base_url, timeout_seconds), buckets, count)


def _translated(error: CallError, path: tuple[str, ...]) -> Exception:
    if error.is_refused_key:
        return InvalidApiKeyError(f"WORKOS_API_KEY: WorkOS refuses the key ({error.status})")
    message = f"/{'/'.join(path[:2])}: {error}"
    if error.is_gone:
        return NotFoundError(message, error.read_at)
    return ERRORS.get(error.status or 0, WorkOSUnavailableError)(message)


def _can_pass(error: BaseException) -> bool:
    return isinstance(error, CallError) and error.can_pass


def _require(what: str, item: object, wanted: Json) -> Json:
    """Return an object of WorkOS's if it has these fields; raises `WorkOSUnavailableError` if it is another or none."""
    if isinstance(item, dict) and all(item.get(name) == value for name, value in wanted.items()):
        return item
    raise WorkOSUnavailableError(f"{what}: WorkOS answered with something else than was asked for")


def _is_cursor(value: str) -> bool:
    """Whether the database and a URL can hold a cursor."""
    return value.isascii() and value.isprintable() and len(value) <= MAX_CURSOR


def _wait(state: RetryCallState) -> float:
    """Return the seconds to wait: what WorkOS said, else doubling."""
    error = state.outcome.exception() if state.outcome else None
    said = error.retry_after if isinstance(error, CallError) else None
    if said is not None:
        return min(said, MAX_WAIT_SECONDS)
    return backoff(state.attempt_number, FIRST_WAIT_SECONDS, MAX_WAIT_SECONDS)


def _stamp(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
