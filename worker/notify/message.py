"""Writes messages: a title and a text for people, and JSON for programs."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

from models.types import JsonObject
from worker.notify.plan import PROBLEM, Active, Plan, Recorded


class Message(NamedTuple):
    """A message to a target."""

    id: str
    """If a message is sent again because nobody knows whether it arrived, it has the same id."""
    level: str
    """The severity in Apprise's terms: `failure`, `warning`, `success` or `info`."""
    title: str
    text: str
    body: JsonObject


class Sender(NamedTuple):
    """The installation that sends: `ENVIRONMENT_NAME`, and `PUBLIC_URL`, with which links begin."""

    environment: str | None
    public_url: str | None

    def title(self, text: str) -> str:
        """Return a title that names the installation."""
        host = urlsplit(self.public_url).netloc if self.public_url else None
        names = ", ".join(filter(None, [self.environment, host]))
        return f"workos-sync{f' ({names})' if names else ''}: {text}"

    def link(self, active: Active) -> str | None:
        """Return the URL of the page about a condition; None without `PUBLIC_URL`."""
        return f"{self.public_url.rstrip('/')}{active.page}" if self.public_url else None


def make_message(target: str, found: Plan, sender: Sender) -> Message:
    """Return the message for a plan. If the plan has no conditions, it says that earlier messages were not accepted."""
    counts = [
        *_counted(found.begun, "new"),
        *_counted(found.continuing, "continuing"),
        *([f"{len(found.ended)} ended"] if found.ended else []),
    ]
    lines = [
        *(_line("New", each, sender) for each in found.begun),
        *(_line("Continuing", each, sender) for each in found.continuing),
        *(f"Ended: {_words(each)}" for each in found.ended),
    ]
    severities = {each.severity for each in (*found.begun, *found.continuing)}
    return Message(
        id=_id(target, found),
        level="failure" if PROBLEM in severities else "warning" if severities else "success",
        title=sender.title(", ".join(counts) or "notifications work again"),
        text="\n".join(lines) or "Earlier messages to this target were not accepted. There is nothing to report now.",
        body={
            "type": "conditions.changed",
            "timestamp": found.now.isoformat(),
            "data": {
                "environment": sender.environment,
                "begun": [_as_json(each, found, sender) for each in found.begun],
                "continuing": [_as_json(each, found, sender) for each in found.continuing],
                "ended": [
                    {"name": each.name, "subject": each.subject, "severity": each.severity}
                    | {"since": each.since.isoformat(), "until": each.gone_since and each.gone_since.isoformat()}
                    for each in found.ended
                ],
            },
        },
    )


def make_test_message(sender: Sender, id: str, now: str) -> Message:
    """Return the message of `workos-sync notify test`."""
    text = "This is a test. Notifications about conditions will arrive here."
    body = {"type": "notify.test", "timestamp": now, "data": {"environment": sender.environment}}
    return Message(id, "info", sender.title("test"), text, body)


def _counted(active: Sequence[Active], word: str) -> Iterable[str]:
    for severity in (PROBLEM, "warning"):
        if number := sum(each.severity == severity for each in active):
            yield f"{number} {word} {severity}{'' if number == 1 else 's'}"


def _line(word: str, active: Active, sender: Sender) -> str:
    link = sender.link(active)
    return f"{word} {active.severity}: {active.sentence}: {active.remedy}" + (f"\n{link}" if link else "")


def _words(recorded: Recorded) -> str:
    return recorded.name.replace("_", " ") + (f" ({recorded.subject})" if recorded.subject else "")


def _as_json(active: Active, found: Plan, sender: Sender) -> JsonObject:
    since = found.recorded[active.key].since.isoformat()
    about = {"name": active.name, "subject": active.subject, "severity": active.severity, "since": since}
    return about | {"sentence": active.sentence, "remedy": active.remedy, "url": sender.link(active)}


def _id(target: str, found: Plan) -> str:
    """Return the id of a message: a hash of its conditions, and of when each was last reported."""
    conditions = [
        (word, *each.key, found.recorded[each.key].since, found.recorded[each.key].notified_at)
        for word, group in (("begun", found.begun), ("continuing", found.continuing), ("ended", found.ended))
        for each in group
    ]
    return f"notice_{hashlib.sha256(repr((target, conditions or found.now)).encode()).hexdigest()[:32]}"
