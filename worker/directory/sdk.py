"""WorkOS's SDK: half a second and a thousand modules, for those who call WorkOS; the door loads it to verify.

No other module of the worker imports it.
"""

import threading
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx2
import workos

from worker.directory.calls import Answer, CallError, Json


class Sdk:
    """Takes raw JSON through the SDK, so that one odd item cannot fail a page. Its own retries are off.

    Args:
        api_key: the environment's secret key.
        client_id: the environment's client id.
        base_url: where WorkOS is, if not at its usual place.
        timeout_seconds: for one call.
    """

    def __init__(self, api_key: str, client_id: str, base_url: str | None, timeout_seconds: float) -> None:
        self._dates = _Dates()
        self._http = httpx2.Client(event_hooks={"response": [self._dates.note]}, timeout=timeout_seconds)
        self._client = workos.WorkOSClient(
            api_key=api_key,
            client_id=client_id,
            base_url=base_url,
            request_timeout=timeout_seconds,  # type: ignore[arg-type]  # it takes parts of a second too
            max_retries=0,  # so that every call takes a token
            http_client=self._http,
        )

    def call(self, method: str, path: tuple[str, ...], params: Json | None, body: Json | None) -> Answer:
        """Call WorkOS once; raises `CallError`."""
        self._dates.forget()
        try:
            return Answer(self._client.request_raw(method, path, params=params, body=body), self._dates.last())
        except workos.WorkOSError as error:
            status, said = getattr(error, "status_code", None), getattr(error, "retry_after", None)
            retry_after = float(said) if isinstance(said, int | float) else None
            raise CallError(type(error).__name__, status, retry_after, self._dates.last(), error.message) from error

    def close(self) -> None:
        """Close the connections."""
        self._http.close()


class _Dates:
    """Remembers the `Date` of each thread's last answer: WorkOS's clock, not ours, says how fresh a reading is."""

    def __init__(self) -> None:
        self._local = threading.local()

    def note(self, response: httpx2.Response) -> None:
        """Take the time from an answer."""
        header = response.headers.get("Date")
        try:
            self._local.date = parsedate_to_datetime(header).astimezone(UTC) if header else None
        except ValueError:
            self._local.date = None

    def forget(self) -> None:
        """Before a call: what the one before it was told is not this one's time."""
        self._local.date = None

    def last(self) -> datetime:
        """Return the time of this thread's last answer, or ours if it told none, in UTC."""
        date: datetime | None = getattr(self._local, "date", None)
        return date or datetime.now(UTC)
