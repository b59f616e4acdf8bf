"""The answer of a single call to WorkOS, and its error."""

import re
from dataclasses import dataclass, field
from datetime import datetime
from http import HTTPStatus
from typing import NamedTuple

from models.types import JsonObject
from worker.errors import WorkosSyncError

NOT_FOUND = re.compile(r"(?!route|page|path|url|cannot)\w.* not found\b", re.IGNORECASE)
"""`Organization not found: 'org_123'.` (docs/workos.md, Listings, reads and their errors)."""
NOTHING = "answered nothing"
"""The name of a `CallError` for an answer without a body."""


class Answer(NamedTuple):
    """The JSON object that WorkOS answered with, and WorkOS's time of the answer, in UTC."""

    body: JsonObject
    read_at: datetime


@dataclass(eq=False, repr=False)
class CallError(WorkosSyncError):
    """A call failed, or its answer is not a JSON object.

    Attributes:
        name: the class of the SDK's error, class and place of any other error, or what is wrong with the answer.
        status: the HTTP status; None if there was no answer, or only a part of one.
        read_at: WorkOS's time, in UTC; None if there was no answer, or one without it.
        retry_after: the seconds to wait, if WorkOS sent `Retry-After`.
        body: the JSON object of the answer; empty if there was none.
        unanswered: whether a missing status means that the network failed, so that a retry may help.
    """

    name: str
    status: int | None
    read_at: datetime | None
    retry_after: float | None = None
    body: JsonObject = field(default_factory=dict)
    unanswered: bool = False

    def __str__(self) -> str:
        return f"{self.name} {self.status or ''}".rstrip()

    @property
    def can_pass(self) -> bool:
        """Whether a retry may help: the network failed, a rate limit is used up, or WorkOS has an outage."""
        if self.status is None:
            return self.unanswered
        return self.status == HTTPStatus.TOO_MANY_REQUESTS or self.status >= HTTPStatus.INTERNAL_SERVER_ERROR

    @property
    def is_gone(self) -> bool:
        """Whether this is WorkOS's own 404, which names what was not found.

        The 404 of a proxy or gateway, or of WorkOS for an unknown route, says nothing about any object.
        """
        message = self.body.get("message")
        named = isinstance(message, str) and NOT_FOUND.match(message) is not None
        return self.status == HTTPStatus.NOT_FOUND and (named or self.body.get("code") == "entity_not_found")

    @property
    def is_refused_key(self) -> bool:
        """Whether WorkOS itself, and not a firewall on the way, refuses the API key."""
        explained = isinstance(self.body.get("message"), str) or isinstance(self.body.get("error"), str)
        return self.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN) and explained
