"""The webhook endpoints at WorkOS, compared with the endpoint that this installation needs."""

from urllib.parse import urlsplit

import httpx2

from models.types import JsonObject
from worker.kinds import SUBSCRIBED
from worker.settings import Settings
from worker.workos_api.client import WorkOSClient

WEBHOOK_PATH = "/webhooks/workos"
FIND_WEB = "let the URL lead to web, and set the same WEBHOOK_PATH_TOKEN there as here"
MAX_ENDPOINT_PAGES = 20
"""Maximum number of pages read of WorkOS's list of endpoints."""
ANSWER_SECONDS = 3.0
"""How long the URL of an endpoint may take to answer."""
NO_ANSWER = (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError)
"""Errors of a request to an endpoint's URL."""


def webhook_path(settings: Settings, *, masked: bool = False) -> str:
    """Return the path at which `web` accepts deliveries. `masked` hides the token in it."""
    token = settings.webhook_path_token
    if token is None:
        return WEBHOOK_PATH
    return f"{WEBHOOK_PATH}/{'<WEBHOOK_PATH_TOKEN>' if masked else token.get_secret_value()}"


def list_endpoints(workos: WorkOSClient) -> tuple[list[JsonObject], bool]:
    """Return the webhook endpoints of the WorkOS environment, as WorkOS describes them, and whether these are all."""
    found: list[JsonObject] = []
    after: str | None = None
    for _ in range(MAX_ENDPOINT_PAGES):
        page = workos.webhook_endpoints(after)
        found += [row for row in page.items if isinstance(row, dict)]
        if (after := page.after) is None:
            return found, True
    return found, False


def is_enabled(endpoint: JsonObject) -> bool | None:
    """Return whether WorkOS sends deliveries to an endpoint; None if the object does not say so.

    WorkOS's emulator sends `enabled` in place of `status`.
    """
    status, enabled = endpoint.get("status"), endpoint.get("enabled")
    if isinstance(status, str):
        return status == "enabled"
    return enabled if isinstance(enabled, bool) else None


def describe(endpoint: JsonObject, settings: Settings) -> JsonObject:
    """Return what an operator needs to know about an endpoint. WEBHOOK_PATH_TOKEN is masked in its URL.

    `here` is whether its path is the one at which `web` accepts deliveries; `event_types` compares them with those
    needed.
    """
    url = str(endpoint.get("endpoint_url"))
    path, masked = webhook_path(settings), webhook_path(settings, masked=True)
    here = urlsplit(url).path == path
    return {
        "id": endpoint.get("id"),
        "url": url.replace(path, masked) if here else url,
        "enabled": is_enabled(endpoint),
        "here": here,
        "event_types": _comparison(endpoint),
        "created_at": endpoint.get("created_at"),
    }


def _comparison(endpoint: JsonObject) -> str:
    compared = compare_event_types(endpoint)
    if compared is None:
        return "unknown"
    missing, extra = compared
    differences = [f"without {type}" for type in missing] + [f"with {type}" for type in extra]
    return ", ".join(differences) or "as needed"


def compare_event_types(endpoint: JsonObject) -> tuple[list[str], list[str]] | None:
    """Return the needed event types that an endpoint lacks, and the types that it has but does not need.

    None if the object has no list of event types. An endpoint with an empty list receives all types. WorkOS's emulator
    does so; the service itself is not documented (docs/workos.md).
    """
    subscribed = endpoint.get("events")
    if not isinstance(subscribed, list):
        return None
    if not subscribed:
        return [], ["all others"]
    types = set(map(str, subscribed))
    return sorted(set(SUBSCRIBED) - types), sorted(types - set(SUBSCRIBED))


def ask_route(url: str) -> int:
    """Return the status with which a URL answers a GET, which delivers nothing; raise one of `NO_ANSWER`."""
    with httpx2.stream("GET", url, timeout=ANSWER_SECONDS) as answer:  # the body is not read
        return answer.status_code
