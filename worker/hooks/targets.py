"""Targets of hooks: HTTP calls by the Standard Webhooks specification, and the message they send."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import NamedTuple, Protocol

import httpx2
from standardwebhooks.webhooks import Webhook

from models.types import JsonObject
from worker.errors import HookError
from worker.mirror.change_feed import as_json
from worker.settings import Settings

AT_ONCE = 8
"""Upper bound on one hook's HTTP calls in flight, each for another object."""


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


class Target(Protocol):
    """Where a hook's changes are sent. `at_once`: upper bound on calls at a time."""

    at_once: int

    def __call__(self, message: JsonObject) -> None:
        """Send a change; any exception means that it was not accepted."""

    def close(self) -> None:
        """Close connections."""


class WebTarget:
    """A URL that is called with a signed body, as the Standard Webhooks specification says.

    Args:
        url: the URL.
        secret: the signing secret, `whsec_…`.
        seconds: time-out of a call.
    """

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


def targets(settings: Settings) -> dict[str, Target]:
    """Return the target of each hook in the settings, by hook name."""
    return {
        name: WebTarget(url, settings.hook_secrets[name].get_secret_value(), settings.hook_seconds)
        for name, url in settings.http_hooks.items()
    }


def message(change: ChangeToSend) -> JsonObject:
    """Return the message about a change: `type`, `timestamp` and `data` (Standard Webhooks, Payload structure).

    `type` is the kind and what happened to it: `membership.created`, `membership.updated`, `membership.deleted`.
    """
    deleted = change.after.get("state") == "deleted"
    verb = "deleted" if deleted else "created" if change.before is None else "updated"
    columns = change._asdict()
    del columns["attempts"]
    data = json.loads(as_json(columns))
    return {"type": f"{change.kind}.{verb}", "timestamp": data["at"], "data": data}


@contextmanager
def opened(settings: Settings) -> Iterator[dict[str, Target]]:
    """Yield the targets of the settings, and close them at the end."""
    found = targets(settings)
    try:
        yield found
    finally:
        for target in found.values():
            target.close()
