"""The lines that `web`, `worker`, `clock` and `up` print on a terminal when they start."""

from collections.abc import Iterator, Sequence
from socket import socket

from models.database import database_url, place_of
from worker.cli.layout import wrap
from worker.processes.embedded import redis_url
from worker.settings import Settings
from worker.settings.masks import masked_url
from worker.times import duration
from worker.webhook_endpoints import webhook_path

ANY = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 - compared, not bound
"""The addresses at which programs on this machine reach a server that listens on all addresses."""


def announcement(command: str, settings: Settings, sockets: Sequence[socket], width: int) -> str:
    """Return what a process does, where it listens on `sockets`, and what to do next, in lines of `width` cells.

    Addresses are not broken.
    """
    parts = {"web": _web(settings, sockets), "worker": _worker(settings), "clock": _clock(settings)}
    lines = [line for name, part in parts.items() if command in (name, "up") for line in part]
    others = [name for name in parts if command not in (name, "up")]
    if not settings.workos_webhook_secrets:  # without a secret, `web` does not start
        others = [name for name in others if name != "web"]
    start = f"start {' and '.join(others)} too, then run" if others else "run"
    lines = [
        f"Database: {place_of(database_url(settings.database_url))}",
        f"Redis: {masked_url(redis_url(settings))}",
        *lines,
        f"Next: {start} workos-sync doctor",
        "Ctrl-C stops it.",
    ]
    whole = "\n".join([f"workos-sync {command}", *(f"  {line}" for line in lines)])
    return "\n".join(wrap(whole, width, whole=True))


def _web(settings: Settings, sockets: Sequence[socket]) -> Iterator[str]:
    for url in dict.fromkeys(url_of(*each.getsockname()[:2]) for each in sockets):
        yield f"Receives webhooks at {url}{webhook_path(settings, masked=True)}"
        yield f"Pages: {url}/ops/" if settings.has_pages else "Pages are off: set OPS_TOKENS to name:token"
        yield f"API: {url}/api/v1/" if settings.api_tokens else "The API is off: set API_TOKENS to name:token"


def _worker(settings: Settings) -> Iterator[str]:
    number = settings.worker_processes
    yield f"Applies events with {number} {'process' if number == 1 else 'processes'}, and runs long jobs"
    if not settings.repairs:
        yield "Does not call WorkOS: set WORKOS_API_KEY and WORKOS_CLIENT_ID to recover lost webhooks"


def _clock(settings: Settings) -> Iterator[str]:
    if settings.repairs:
        resync, catch_up = duration(settings.resync_seconds), duration(settings.catch_up_seconds)
        yield f"Starts a resync every {resync}, a catch-up every {catch_up}, and retention"
    else:
        yield "Starts retention"


def url_of(host: str, port: int) -> str:
    """Return the URL without a path at which programs on this machine reach an address that `web` listens on."""
    bracketed = f"[{host}]" if ":" in host else host
    return f"http://{ANY.get(host, bracketed)}:{port}"
