"""Every error of this program, under one root, and how errors are described without quoting values."""

import hashlib
import re
import traceback
from datetime import datetime
from pathlib import PurePath
from typing import ClassVar

MAX_FRAMES = 20
MAX_CAUSES = 5


class WorkosSyncError(Exception):
    """The root of all errors of this program."""

    exit_code: ClassVar[int] = 1
    """The exit code of a command that raises it: 2 for wrong usage or configuration, 1 for everything else."""


class ConfigurationError(WorkosSyncError):
    """A setting, an option or the environment is wrong. The message names it, and the remedy."""

    exit_code = 2


class AmbiguousNameError(ConfigurationError):
    """A name belongs to several objects. The message lists their ids."""


class OperatorError(WorkosSyncError):
    """An operator's request cannot be carried out. The message names the object and the reason."""


class TimeError(ConfigurationError):
    """The mirror cannot answer a question about a time. `status` is the HTTP status of such an answer."""

    status: ClassVar[int]


class FutureTimeError(TimeError):
    """The time has not come yet."""

    status = 400


class NotKeptError(TimeError):
    """The time is before the mirror was filled, or changes since have been pruned."""

    status = 410


class UnknownIdError(OperatorError):
    """There is no object with this id."""


class BusyError(OperatorError):
    """Another run of the same kind is in progress."""


class AlreadyReplayedError(OperatorError):
    """The same events were replayed before, and none has failed since."""


class CursorGoneError(OperatorError):
    """The changes after this id have been pruned, or never existed here."""


class WorkOSError(WorkosSyncError):
    """A call of WorkOS failed: there was no answer, or not the one expected. Subclasses say more.

    `status` is the HTTP status of the answer; None if there was none, or if it was read but could not be used.
    """

    status: int | None = None


class BadRequestError(WorkOSError):
    """WorkOS answered 400, 409 or 422: it rejects the parameters, such as a cursor that it no longer knows."""


class RateLimitedError(WorkOSError):
    """WorkOS answered 429 to every attempt. Other programs share the rate limit."""


class DeadlinePassedError(WorkOSError):
    """A write was not sent, because its deadline passed while it waited for the rate limit."""


class NotFoundError(WorkOSError):
    """WorkOS's own 404: the object of the call does not exist. `read_at` is WorkOS's time, in UTC."""

    def __init__(self, message: str, read_at: datetime) -> None:
        super().__init__(message)
        self.read_at = read_at


class EventTypesRefusedError(WorkOSError):
    """WorkOS rejects some event types by name. The events of all other types were read."""


class InvalidApiKeyError(ConfigurationError):
    """WorkOS rejects the API key."""


class CursorLostError(WorkosSyncError):
    """WorkOS rejects the cursor of the events API."""


class ListingFailedError(WorkosSyncError):
    """A listing that a resync needs cannot be read, though WorkOS answers other calls."""


class PayloadError(WorkosSyncError):
    """An event's data cannot be used. A retry cannot help, so the event fails at once."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field


class WorkerCrashedError(WorkosSyncError):
    """The process ended while an event was alone in its transaction."""

    def __init__(self) -> None:
        super().__init__("the process ended while it applied this event")


class LeaseLostError(WorkosSyncError):
    """Another worker has taken over the run. This one must write nothing more."""


class HookError(WorkosSyncError):
    """A hook did not accept a change."""


class NotifyError(WorkosSyncError):
    """A target of `NOTIFY` did not accept a message. The text contains nothing that the target answered."""


class InvalidSignatureError(WorkosSyncError):
    """A delivery has no valid signature. `reason` is one of a few words, so that it can label a metric."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class TooManyGuessesError(WorkosSyncError):
    """An address sent too many wrong tokens. It may try again after `seconds`."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"too many wrong tokens from this address; try again in {seconds} seconds")
        self.seconds = seconds


class RefusedRequestError(WorkosSyncError):
    """A request cannot be received: answer the HTTP `status`. `reason` is a constant that quotes nothing of it."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


def fingerprint(error: BaseException) -> str:
    """Return eight hex digits that errors with the same cause share: a hash of class and message, without ids."""
    first_line = next(iter(str(error).splitlines()), "")
    shape = re.sub(r"'[^']*'|\"[^\"]*\"|[0-9a-f]{8,}|\w+_\w{8,}|\d+", "?", first_line)
    return hashlib.sha256(f"{type(error).__name__}: {shape}".encode()).hexdigest()[:8]


def stack_of(error: BaseException) -> str | None:
    """Return the stack of an error, outermost call first: a file, line and function each, and never a value."""
    frames = traceback.extract_tb(error.__traceback__)[-MAX_FRAMES:]
    return "\n".join(place_in(frame.filename, frame.lineno, frame.name) for frame in frames) or None


def place_in(file: str, line: int | None, function: str | None) -> str:
    """Return a place in code in one line, with the end of the file's path."""
    return f"{'/'.join(PurePath(file).parts[-3:])}:{line} in {function}"


def unexpected(error: BaseException) -> str:
    """Describe an unexpected error in one line: its class and where it was raised, and never a value."""
    place = (stack_of(error) or "an unknown place").splitlines()[-1]
    return f"{type(error).__name__} at {place}"


def reason_of(error: BaseException) -> str:
    """Return the message of one of our errors. Describe any other as `unexpected` does, because it may quote values."""
    return str(error) if isinstance(error, WorkosSyncError) else unexpected(error)


def causes_of(error: BaseException) -> list[BaseException]:
    """Return an error and what caused it, the causes last; at most `MAX_CAUSES` of them."""
    found = [error]
    while len(found) <= MAX_CAUSES:
        cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if cause is None or cause in found:
            break
        found.append(error := cause)
    return found
