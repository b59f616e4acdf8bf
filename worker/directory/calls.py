"""What a single call to WorkOS is, whoever makes it."""

from datetime import datetime
from typing import Any, NamedTuple

Json = dict[str, Any]


class Answer(NamedTuple):
    """The JSON object that WorkOS answered with, and its own time then, in UTC."""

    body: Json
    read_at: datetime


class CallError(Exception):
    """A call failed.

    Attributes:
        name: the SDK's word for it.
        status: the HTTP status; None if there was no answer.
        retry_after: the seconds that WorkOS asks to wait for, if it said so.
        read_at: WorkOS's time, in UTC; ours if there was no answer.
        message: WorkOS's own words. They may quote what was sent.
    """

    def __init__(
        self, name: str, status: int | None, retry_after: float | None, read_at: datetime, message: str = ""
    ) -> None:
        super().__init__(f"{name} {status or ''}".rstrip())
        self.name = name
        self.status = status
        self.retry_after = retry_after
        self.read_at = read_at
        self.message = message
