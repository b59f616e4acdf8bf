"""What can go wrong, by name."""

import hashlib
import re
import traceback
from pathlib import PurePath

MAX_FRAMES = 20


class PayloadError(Exception):
    """An event's data cannot be used. Trying again cannot help, so its event is set aside at once."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field


def fingerprint(error: BaseException) -> str:
    """Return eight hex digits that errors of one cause share: the class and its message, without what varies in it."""
    first_line = next(iter(str(error).splitlines()), "")
    shape = re.sub(r"'[^']*'|\"[^\"]*\"|[0-9a-f]{8,}|\w+_\w{8,}|\d+", "?", first_line)
    return hashlib.sha256(f"{type(error).__name__}: {shape}".encode()).hexdigest()[:8]


def stack_of(error: BaseException) -> str | None:
    """Return the frames an error came through, innermost last: a file, line and function each, and never a value."""
    frames = traceback.extract_tb(error.__traceback__)[-MAX_FRAMES:]
    lines = (f"{'/'.join(PurePath(frame.filename).parts[-3:])}:{frame.lineno} in {frame.name}" for frame in frames)
    return "\n".join(lines) or None


def unexpected(error: BaseException) -> str:
    """Return an error that no code foresaw in one line: its class and where it was raised, and never a value."""
    place = (stack_of(error) or "an unknown place").splitlines()[-1]
    return f"{type(error).__name__} at {place}"


class ConfigurationError(Exception):
    """Settings or surroundings are wrong; the message names what and the remedy."""


class WorkerCrashedError(Exception):
    """The process ended while an event was alone in its transaction."""

    def __init__(self) -> None:
        super().__init__("the process ended while it applied this event")
