"""What a single call to WorkOS is, whoever makes it."""

import re
from datetime import datetime
from http import HTTPStatus
from typing import NamedTuple

from models.types import JsonObject
from worker.errors import WorkosSyncError

Json = JsonObject
NOT_FOUND = re.compile(r"(?!route|page|path|url|cannot)\w.* not found\b", re.IGNORECASE)
"""`Organization not found: 'org_123'.` (docs/workos.md, Listings, reads and their errors)."""


class Answer(NamedTuple):
    """The JSON object that WorkOS answered with, and its own time then, in UTC."""

    body: Json
    read_at: datetime


class CallError(WorkosSyncError):
    """A call failed, or its answer is no JSON object.

    Attributes:
        name: the SDK's word for it, or the class of what the SDK raised.
        status: the HTTP status; None if there was no answer.
        read_at: WorkOS's time, in UTC; ours if there was no answer.
        retry_after: the seconds that WorkOS asks to wait for, if it said so.
        body: the error as WorkOS describes it; empty unless the answer was a JSON object.
        unanswered: the network failed, so that another try may help.
    """

    def __init__(
        self,
        name: str,
        status: int | None,
        read_at: datetime,
        *,
        retry_after: float | None = None,
        body: Json | None = None,
        unanswered: bool = False,
    ) -> None:
        super().__init__(f"{name} {status or ''}".rstrip())
        self.name = name
        self.status = status
        self.read_at = read_at
        self.retry_after = retry_after
        self.body = body or {}
        self.unanswered = unanswered

    @property
    def can_pass(self) -> bool:
        """Whether another try may help: the network failed, a limit is used up, or WorkOS is in trouble."""
        status = self.status
        if status is None:
            return self.unanswered
        return status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR

    @property
    def is_gone(self) -> bool:
        """Whether this is WorkOS's own 404, which names what was not found.

        A proxy's or gateway's, and WorkOS's own for an unknown route, says nothing about any object.
        """
        message = self.body.get("message")
        named = isinstance(message, str) and NOT_FOUND.match(message) is not None
        return self.status == HTTPStatus.NOT_FOUND and (named or self.body.get("code") == "entity_not_found")

    @property
    def is_refused_key(self) -> bool:
        """Whether WorkOS itself, not a firewall on the way, refuses the API key."""
        explained = isinstance(self.body.get("message"), str) or isinstance(self.body.get("error"), str)
        return self.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN) and explained
