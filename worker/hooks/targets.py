"""Where hooks send changes: signed HTTP calls as in the Standard Webhooks specification."""

import json
from datetime import UTC, datetime
from typing import NamedTuple, Protocol

import httpx2
from standardwebhooks.webhooks import Webhook

from models.types import JsonObject
from worker.errors import HookError
from worker.mirror.change_feed import as_json
from worker.settings import Settings

AT_ONCE = 8
"""Maximum number of concurrent calls of a hook. Each is about another object."""


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
    attempts: int = 0

    @property
    def object_key(self) -> tuple[str, str]:
        """Kind and id of the object. Its changes are sent in order."""
        return self.kind, self.object_id


class Target(Protocol):
    """Where a hook's changes are sent, with at most `at_once` concurrent calls."""

    at_once: int

    def __call__(self, message: JsonObject) -> None:
        """Send a change; any exception means that it was not accepted."""


class WebTarget:
    """A URL, the secret `whsec_…` that signs the messages to it, and the time-out of a call in seconds."""

    at_once = AT_ONCE

    def __init__(self, url: str, secret: str, seconds: float) -> None:
        self._url = url
        self._signer = Webhook(secret)
        self._http = httpx2.Client(timeout=seconds, follow_redirects=False)

    def __call__(self, message: JsonObject) -> None:
        """Send a change; raise `HookError` unless the answer is 2xx."""
        body, id, now = json.dumps(message, separators=(",", ":")), f"change_{message['data']['id']}", datetime.now(UTC)
        headers = {
            "content-type": "application/json",
            "webhook-id": id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": self._signer.sign(id, now, body),
        }
        try:
            answer = self._http.post(self._url, content=body.encode(), headers=headers)
        except httpx2.HTTPError as error:
            raise HookError(f"no answer: {type(error).__name__}") from error
        if not answer.is_success:
            raise HookError(f"answered {answer.status_code}")

    def close(self) -> None:
        """Close the connections."""
        self._http.close()


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
