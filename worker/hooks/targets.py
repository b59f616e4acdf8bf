"""Where hooks send changes: signed HTTP calls as in the Standard Webhooks specification."""

import asyncio
import json
import threading
from datetime import UTC, datetime
from typing import NamedTuple

import httpx2
from standardwebhooks.webhooks import Webhook

from models.types import JsonObject
from worker import traces
from worker.errors import HookError
from worker.json_format import as_json
from worker.settings import Settings

MAX_ANSWER_BYTES = 65_536
"""A longer answer is not read to its end, and its connection is closed. Only the status matters."""


class ChangeToSend(NamedTuple):
    """A row of `changes`, and how many attempts to send it to a hook have failed."""

    id: int
    at: datetime
    kind: str
    object_id: str
    organization_id: str | None
    before: JsonObject | None
    after: JsonObject
    cause: str
    cause_id: str
    actor_id: str | None
    actor_name: str | None
    actor_source: str | None
    previous_attributes: JsonObject | None
    attempts: int = 0

    @property
    def object_key(self) -> tuple[str, str]:
        """Kind and id of the object. Its changes are sent in order."""
        return self.kind, self.object_id


class WebTarget:
    """A URL, the secret `whsec_…` that signs the messages to it, and the time limit of a whole call in seconds.

    The calls run in an event loop, because only a task can be ended at any point: while the name is resolved, while the
    receiver reads slowly, or while it sends its answer byte by byte.
    """

    def __init__(self, url: str, secret: str, seconds: float) -> None:
        self._url = url
        self._signer = Webhook(secret)
        self._seconds = seconds
        self._http = httpx2.AsyncClient(timeout=None, follow_redirects=False)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="hook-calls")
        self._thread.start()

    def __call__(self, message: JsonObject) -> None:
        """Send a change; raise `HookError` unless the answer is 2xx."""
        self.send(f"change_{message['data']['id']}", message)

    def send(self, id: str, message: JsonObject) -> None:
        """Send a message with its id, by which the receiver detects duplicates. Errors are those of a call."""
        body, now = json.dumps(message, separators=(",", ":")), datetime.now(UTC)
        headers = {
            "content-type": "application/json",
            "webhook-id": id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": self._signer.sign(id, now, body),
        }
        if (traceparent := traces.current()) is not None:
            headers["traceparent"] = traceparent
        status = asyncio.run_coroutine_threadsafe(self._post(body.encode(), headers), self._loop).result()
        if not httpx2.codes.is_success(status):
            raise HookError(f"answered {status}")

    async def _post(self, body: bytes, headers: dict[str, str]) -> int:
        """Return the status of the answer; raise `HookError` if none came in time.

        The body is read only so that the connection can be used again. A receiver that sends it slowly has still
        answered.
        """
        status = None
        try:
            async with (
                asyncio.timeout(self._seconds),
                self._http.stream("POST", self._url, content=body, headers=headers) as answer,
            ):
                status = answer.status_code
                await _read_some(answer)
        except TimeoutError as error:
            if status is None:
                raise HookError(f"no answer within {self._seconds:g} s") from error
        except httpx2.HTTPError as error:
            if status is None:
                raise HookError(f"no answer: {type(error).__name__}") from error
        return status

    def close(self) -> None:
        """Close the connections."""
        asyncio.run_coroutine_threadsafe(self._http.aclose(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _read_some(answer: httpx2.Response) -> None:
    """Read an answer to its end, but at most about `MAX_ANSWER_BYTES`."""
    length = 0
    async for part in answer.aiter_raw():
        length += len(part)
        if length > MAX_ANSWER_BYTES:
            return


def targets(settings: Settings) -> dict[str, WebTarget]:
    """Return the target of each hook in the settings, by hook name."""
    return {
        name: WebTarget(url, settings.hook_secrets[name].get_secret_value(), settings.hook_seconds)
        for name, url in settings.http_hooks.items()
    }


def message(change: ChangeToSend) -> JsonObject:
    """Return the message about a change: `type`, such as `membership.created`, `timestamp` and `data`."""
    deleted = change.after.get("state") == "deleted"
    verb = "deleted" if deleted else "created" if change.before is None else "updated"
    columns = change._asdict()
    del columns["attempts"]
    data = json.loads(as_json(columns))
    return {"type": f"{change.kind}.{verb}", "timestamp": data["at"], "data": data}
