"""Test messages to all targets."""

import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

from models.types import Record
from worker.errors import NotifyError
from worker.notify.message import Message, Sender, make_test_message
from worker.notify.targets import Target, targets
from worker.settings import Settings


def send_tests(settings: Settings) -> list[Record]:
    """Send a test message to each target at the same time; return a row for each: `target`, `outcome`, `error`."""
    sender = Sender(settings.environment_name, settings.public_url)
    message = make_test_message(sender, f"test_{uuid.uuid4().hex}", datetime.now(UTC).isoformat())
    found = targets(settings)
    with ThreadPoolExecutor(len(found), "notify") as pool:
        errors = pool.map(lambda target: _error(target, message), found.values())
        return [
            {"target": name, "outcome": "failed" if error else "sent", "error": error}
            for name, error in zip(found, errors, strict=True)
        ]


def _error(target: Target, message: Message) -> str | None:
    try:
        target(message)
    except NotifyError as error:
        return str(error)
    return None
