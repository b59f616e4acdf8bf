"""Sends a message through Apprise, or checks URLs: `python -m worker.notify.apprise_child`.

Apprise runs in its own process, so that a call that hangs can be killed, and the memory of Apprise is freed afterwards.
Standard input is a JSON object with `urls`, and `message`: an object with `title`, `text` and `level`, or null to only
check the URLs. Standard output is a JSON object with `problems`: a text, or null, for each URL. The text contains
neither the URL nor what the service answered.
"""

import json
import logging
import re
import sys
from typing import Any

import apprise
from apprise.manager_plugins import NotificationManager


class _Reasons(logging.Handler):
    """Finds out from Apprise's log why sending failed, because `notify` returns only whether it failed."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.reason = "it was not accepted"

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the status of the answer, or that there was none, but not the line, which may contain addresses."""
        line = record.getMessage()
        if status := re.search(r"error=(\d{3})\b", line):
            self.reason = f"answered {status[1]}"
        elif re.search(r"connection error", line, re.IGNORECASE):
            self.reason = "no answer"


def check(url: str) -> str | None:
    """Return why Apprise cannot use a URL, or None."""
    scheme = url.partition("://")[0].lower()
    if scheme not in NotificationManager():  # type: ignore[no-untyped-call]  # Apprise has no types for it
        return f"Apprise knows no service {scheme}://"
    if apprise.Apprise.instantiate(url) is None:
        return f"it is not a URL of Apprise's service {scheme}://, or that service needs another package"
    return None


def send(url: str, title: str, text: str, level: str) -> str | None:
    """Send a message; return why that failed, or None."""
    reasons = _Reasons()
    logging.getLogger("apprise").addHandler(reasons)
    sender = apprise.Apprise()
    if not sender.add(url):
        return check(url)
    sent = sender.notify(
        body=text, title=title, notify_type=apprise.NotifyType(level), body_format=apprise.NotifyFormat.TEXT
    )
    return None if sent else reasons.reason


def run(request: dict[str, Any]) -> list[str | None]:
    """Carry out a request; return a problem, or None, for each URL."""
    logging.getLogger("apprise").propagate = False
    message = request["message"]
    return [send(url, **message) if message else check(url) for url in request["urls"]]


if __name__ == "__main__":
    json.dump({"problems": run(json.load(sys.stdin))}, sys.stdout)
