"""What hooks call, as Standard Webhooks says, and the message they send."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Protocol

import httpx2
from standardwebhooks.webhooks import Webhook

from worker.errors import HookError
from worker.mirror.change_feed import as_json
from worker.settings import Settings

AT_ONCE = 8
"""HTTP calls of one hook in flight, of different objects."""

Row = Mapping[str, Any]


class Target(Protocol):
    """What a hook calls."""

    at_once: int

    def __call__(self, message: dict[str, Any]) -> None:
        """Tell it of a change; any exception means that it did not take it."""

    def close(self) -> None:
        """Let go of what it holds."""


class WebTarget:
    """An address that is called as Standard Webhooks says, with a signature of the body.

    Args:
        url: the address.
        secret: `whsec_…`.
        seconds: how long to wait for an answer.
    """

    at_once = AT_ONCE

    def __init__(self, url: str, secret: str, seconds: float) -> None:
        self._url = url
        self._signer = Webhook(secret)
        self._http = httpx2.Client(timeout=seconds, follow_redirects=False)

    def __call__(self, message: dict[str, Any]) -> None:
        """Raise `HookError` unless the answer is 2xx."""
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


def message(row: Row) -> dict[str, Any]:
    """Return a change as hooks are told of it: `type`, `timestamp` and `data` (Standard Webhooks, Payload structure).

    `type` is the kind and what became of it: `membership.created`, `membership.updated`, `membership.deleted`.
    """
    deleted = (row["after"] or {}).get("state") == "deleted"
    verb = "deleted" if deleted else "created" if row["before"] is None else "updated"
    told = ("id", "at", "kind", "object_id", "organization_id", "before", "after", "cause", "cause_id")
    data = json.loads(as_json({name: row[name] for name in told}))
    return {"type": f"{row['kind']}.{verb}", "timestamp": data["at"], "data": data}


@contextmanager
def opened(settings: Settings) -> Iterator[dict[str, Target]]:
    """Yield the targets of the settings; they are closed at the end."""
    found = targets(settings)
    try:
        yield found
    finally:
        for target in found.values():
            target.close()
