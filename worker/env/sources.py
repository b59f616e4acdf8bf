"""Where settings come from: the environment and `.env`.

Values are stripped, and blank ones count as not set, except for the settings in `RESTRICTIONS`.
"""

import os
import re
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

ENV_FILE = Path(".env")
EDGES = re.compile(r"^[\s\ufeff\u200b]+|[\s\ufeff\u200b]+$")
"""White space, byte order marks and zero-width spaces, which come with text copied from documents."""
FOREIGN = frozenset(("listen_pid", "listen_fdnames", "pgport"))
"""Variables of systemd and libpq whose names resemble settings."""

STANDARD = "otel_"
"""The beginning of names of OpenTelemetry, which has many that resemble ours."""
SHORT = 7
"""A name of at most this length must be nearly equal to a setting to count as similar."""


class Given(NamedTuple):
    """The text of a setting, stripped, and its origin: `environment`, `.env` or `option`."""

    text: str
    origin: str


def environment() -> dict[str, Given]:
    """Return all environment variables by lower-case name."""
    return _stripped(os.environ, "environment")


def env_file() -> dict[str, Given]:
    """Return what the file `.env` contains, by lower-case name; raise `ValueError` if it cannot be read."""
    try:
        if not ENV_FILE.is_file():
            return {}
        if "\0" in ENV_FILE.read_text("utf-8-sig"):
            raise ValueError("is not UTF-8, but perhaps UTF-16; save it as UTF-8")
        from dotenv import dotenv_values  # noqa: PLC0415 - takes a while, and most processes have no such file

        return _stripped(dotenv_values(ENV_FILE, encoding="utf-8-sig"), ".env")
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8, but perhaps UTF-16; save it as UTF-8") from None
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}; make it readable, or remove it") from error


def _stripped(source: Mapping[str, str | None], origin: str) -> dict[str, Given]:
    return {name.lower(): Given(EDGES.sub("", text or ""), origin) for name, text in source.items()}


def lookalikes(names: AbstractSet[str], ours: AbstractSet[str]) -> dict[str, list[str]]:
    """Return the unknown `names` that resemble settings (`ours`), each with those settings. All are in lower case."""
    found = {}
    for name in sorted(names - FOREIGN):
        matches = get_close_matches(name, ours, cutoff=0.95 if name.startswith(STANDARD) else 0.77)
        # A short name resembles many others.
        if near := [match for match in matches if len(match) > SHORT or get_close_matches(name, [match], cutoff=0.85)]:
            found[name] = near
    return found
