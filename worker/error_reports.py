"""Reports unexpected errors to Sentry (extra `sentry`) if SENTRY_DSN is set.

A report has the class of the error and the places in the code, but no message, value, source line or request. It is
built from the traceback alone, so that nothing has to be removed from it.
"""

import traceback
from collections.abc import Iterator
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from worker.errors import ConfigurationError, fingerprint

if TYPE_CHECKING:
    from sentry_sdk import Client

FLUSH_SECONDS = 2.0
"""How long a process that stops waits for its last reports to be sent."""
MAX_CHAIN = 5
"""Maximum number of errors in a report: the error, and those that caused it."""
MAX_FRAMES = 50

_clients: list["Client"] = []
"""The client of this process, if errors are reported."""


def start(dsn: str | None, environment: str | None) -> None:
    """Report errors of this process from now on. Do nothing if `dsn`, Sentry's address and key, is None.

    Raises:
        ConfigurationError: the extra is not installed, or the DSN is not one of Sentry's.
    """
    if dsn is not None and not _clients:
        _clients.append(_client(dsn, environment))


def check(dsn: str) -> None:
    """Raise `ConfigurationError` as `start` does. Nothing is sent."""
    _client(dsn, None).close(timeout=0)


def _client(dsn: str, environment: str | None) -> "Client":
    try:
        from sentry_sdk import Client  # noqa: PLC0415 - an extra
        from sentry_sdk.utils import BadDsn  # noqa: PLC0415
    except ImportError as error:
        problem = "SENTRY_DSN needs sentry-sdk; run pip install 'workos-sync[sentry]', or remove the setting"
        raise ConfigurationError(problem) from error
    try:
        # Sentry's integrations would add the request, the names of installed packages, and log lines.
        return Client(
            dsn,
            default_integrations=False,
            environment=environment or "production",
            release=f"workos-sync@{version('workos-sync')}",
            send_client_reports=False,
            server_name="",
        )
    except BadDsn as error:
        raise ConfigurationError("SENTRY_DSN is not a DSN; copy it from the project's settings, Client keys") from error


def capture(error: BaseException, **tags: str) -> None:
    """Queue a report of an error, with ids and names as `tags`. A thread of Sentry's client sends it."""
    for client in _clients:
        client.capture_event(
            {
                "level": "error",
                "exception": {"values": list(_described(error))[::-1]},  # Sentry wants the cause first
                "fingerprint": [fingerprint(error)],
                "tags": {**tags, "fingerprint": fingerprint(error)},
            }
        )


def stop() -> None:
    """Send the queued reports, for at most `FLUSH_SECONDS`, and report nothing more."""
    while _clients:
        _clients.pop().close(timeout=FLUSH_SECONDS)


def _described(error: BaseException) -> Iterator[dict[str, Any]]:
    """Yield the class and the places of an error, and of those that caused it."""
    found: BaseException | None = error
    for _ in range(MAX_CHAIN):
        if found is None:
            return
        frames = traceback.extract_tb(found.__traceback__)[-MAX_FRAMES:]
        places = [{"filename": frame.filename, "function": frame.name, "lineno": frame.lineno} for frame in frames]
        yield {"type": type(found).__name__, "module": type(found).__module__, "stacktrace": {"frames": places}}
        found = found.__cause__
