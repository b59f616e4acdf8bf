"""One call of the WorkOS API, made with WorkOS's SDK.

Loaded only by processes that call WorkOS, because importing the SDK takes half a second.
"""

import threading
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx2
import workos
from rq.timeouts import BaseTimeoutException

from models.types import JsonObject
from worker.errors import causes_of, unexpected
from worker.workos_api.calls import NOTHING, Answer, CallError

SUCCESS = range(200, 300)


class Sdk:
    """Calls WorkOS and returns raw JSON. The SDK's own retries are off, so that every call takes a token.

    Arguments are those of `worker.workos_api.client.open_client`.
    """

    def __init__(self, api_key: str, client_id: str, base_url: str | None, timeout_seconds: float) -> None:
        self._answers = _LastAnswer()
        self._http = httpx2.Client(event_hooks={"response": [self._answers.note]}, timeout=timeout_seconds)
        self._client = workos.WorkOSClient(
            api_key=api_key,
            client_id=client_id,
            base_url=base_url,
            request_timeout=timeout_seconds,  # type: ignore[arg-type]  # fractions of a second are accepted too
            max_retries=0,
            http_client=self._http,
        )
        self.close = self._http.close

    def call(self, method: str, path: tuple[str, ...], sent: JsonObject) -> Answer:
        """Make one call. `sent` are the query parameters of a `get`, and the body of any other method.

        Raises:
            CallError: there was no 2xx answer that is a JSON object and has WorkOS's time, or the SDK or a library
                under it raised an error.
            rq.timeouts.BaseTimeoutException: RQ's time limit for the job is over.
        """
        self._answers.forget()
        params, body = (sent, None) if method == "get" else (None, sent)
        try:
            answer: object = self._client.request(method, path, params=params, body=body)
        except BaseTimeoutException:
            raise
        except Exception as error:
            # Not always a `WorkOSError`: the SDK fails on some ids (`..`), and on some bodies of errors (a list).
            wait, described = getattr(error, "retry_after", None), getattr(error, "response_json", None)
            of_network = isinstance(error, workos.WorkOSError) and not hasattr(error, "status_code")
            raise CallError(
                _name(error) if isinstance(error, workos.WorkOSError) else unexpected(error),
                # The network may fail in the middle of an answer, whose status then says nothing.
                None if of_network else getattr(error, "status_code", self._answers.status),
                self._answers.date,
                retry_after=float(wait) if isinstance(wait, int | float) else None,
                body=described if isinstance(described, dict) else {},
                unanswered=of_network,
            ) from error
        if not isinstance(answer, dict) or self._answers.status not in SUCCESS:
            name = NOTHING if self._answers.empty else "answered no object"
            raise CallError(name, self._answers.status, self._answers.date)
        if self._answers.date is None:
            raise CallError("answered without a Date header", self._answers.status, None)
        return Answer(answer, self._answers.date)


def _name(error: workos.WorkOSError) -> str:
    """Return the class of an error and, if there was no connection, the reason: the system's, which has no values."""
    reason = next((f" ({cause})" for cause in causes_of(error) if isinstance(cause, httpx2.ConnectError)), "")
    return f"{type(error).__name__}{reason}"


class _LastAnswer(threading.local):
    """The status and `Date` (in UTC) of this thread's last answer. Reads are dated by WorkOS's clock, never by ours."""

    status: int | None = None
    date: datetime | None = None
    empty: bool = False
    """Whether the answer has no body."""

    def forget(self) -> None:
        """Forget the answer to the previous call."""
        self.status, self.date, self.empty = None, None, False

    def note(self, response: httpx2.Response) -> None:
        """Record an answer. An invalid `Date` counts as none."""
        self.status = response.status_code
        has_body = "Transfer-Encoding" in response.headers or response.headers.get("Content-Length", "0") != "0"
        self.empty = self.status in SUCCESS and not has_body
        with suppress(ValueError, OverflowError):
            self.date = parsedate_to_datetime(response.headers.get("Date", "")).astimezone(UTC)
