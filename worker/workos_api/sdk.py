"""WorkOS's SDK: half a second and a thousand modules, for those who call WorkOS; the door loads it to verify.

No other module of the worker imports it.
"""

import threading
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx2
import workos
from rq.timeouts import BaseTimeoutException

from worker.workos_api.calls import Answer, CallError, Json

SUCCESS = range(200, 300)


class Sdk:
    """Takes raw JSON through the SDK, so that one invalid item cannot fail a page. Its own retries are off.

    Args:
        api_key: the environment's secret key.
        client_id: the environment's client id.
        base_url: where WorkOS is, if not at its usual place.
        timeout_seconds: for one call.
    """

    def __init__(self, api_key: str, client_id: str, base_url: str | None, timeout_seconds: float) -> None:
        self._answers = _LastAnswer()
        self._http = httpx2.Client(event_hooks={"response": [self._answers.note]}, timeout=timeout_seconds)
        self._client = workos.WorkOSClient(
            api_key=api_key,
            client_id=client_id,
            base_url=base_url,
            request_timeout=timeout_seconds,  # type: ignore[arg-type]  # it takes parts of a second too
            max_retries=0,  # so that every call takes a token
            http_client=self._http,
        )

    def call(self, method: str, path: tuple[str, ...], params: Json | None, body: Json | None) -> Answer:
        """Call WorkOS once.

        Raises:
            CallError: there was no 2xx answer that is a JSON object, or the SDK or a library under it raised anything.
            rq.timeouts.BaseTimeoutException: RQ ended the job meanwhile.
        """
        self._answers.forget()
        try:
            answer: object = self._client.request(method, path, params=params, body=body)
        except BaseTimeoutException:
            raise
        except workos.WorkOSError as error:
            status, wait = getattr(error, "status_code", None), getattr(error, "retry_after", None)
            described = getattr(error, "response_json", None)
            raise CallError(
                type(error).__name__,
                status,
                self._answers.read_at(),
                retry_after=float(wait) if isinstance(wait, int | float) else None,
                body=described if isinstance(described, dict) else None,
                unanswered=True,
            ) from error
        except Exception as error:
            # The SDK refuses some ids (`..`) before it calls, and stumbles over some errors' bodies (a list).
            raise CallError(type(error).__name__, self._answers.status, self._answers.read_at()) from error
        if not isinstance(answer, dict) or self._answers.status not in SUCCESS:
            raise CallError("answered no object", self._answers.status, self._answers.read_at())
        return Answer(answer, self._answers.read_at())

    def close(self) -> None:
        """Close the connections."""
        self._http.close()


class _LastAnswer(threading.local):
    """The status and `Date` of this thread's last answer: WorkOS's clock, not ours, says how fresh a reading is."""

    status: int | None = None
    date: datetime | None = None

    def forget(self) -> None:
        """Forget the answer to the previous call."""
        self.status = self.date = None

    def note(self, response: httpx2.Response) -> None:
        """Note an answer; a `Date` that cannot be read counts as none."""
        self.status = response.status_code
        with suppress(ValueError, OverflowError):
            self.date = parsedate_to_datetime(response.headers.get("Date", "")).astimezone(UTC)

    def read_at(self) -> datetime:
        """Return the time of the answer, or our own time without one, in UTC."""
        return self.date or datetime.now(UTC)
