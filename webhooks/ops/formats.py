"""Template filters: times and durations as the pages show them, and the color of an environment."""

import zlib
from datetime import UTC, datetime, timedelta

from flask import Flask

from worker.json_format import as_json
from worker.times import duration

HUES = 6
"""Number of colors that distinguish environments: the classes `hue-…` of ops.css."""
UNITS = (("d", 86400), ("h", 3600), ("min", 60))
RELATIVE = timedelta(days=30)
"""Times further away than this are shown as a date."""


def install(app: Flask) -> None:
    """Add the filters to `app`."""
    for template_filter in (format_time, format_duration, relative, hue, as_json):
        app.add_template_filter(template_filter)


def format_time(value: datetime | None) -> str:
    """Return a time in UTC, such as `2026-03-01 12:00:00`; empty for None."""
    return f"{value:%Y-%m-%d %H:%M:%S}" if value else ""


def format_duration(seconds: float | None) -> str:
    """Return a duration in its two largest units, such as `2 h 5 min`; empty for None."""
    return "" if seconds is None else duration(seconds)


def relative(value: datetime) -> str:
    """Return a time as `5 min ago` or `in 2 d`, or as its date in UTC if it is more than 30 days away.

    ops.js does the same while the page is open.
    """
    away = datetime.now(UTC) - value
    if abs(away) > RELATIVE:
        return f"{value:%Y-%m-%d} UTC"
    seconds = round(abs(away.total_seconds()))
    unit, size = next((each for each in UNITS if seconds >= each[1]), ("s", 1))
    return f"{seconds // size} {unit} ago" if away >= timedelta() else f"in {seconds // size} {unit}"


def hue(name: str) -> int:
    """Return the number of the color of an environment, always the same for a name."""
    return zlib.crc32(name.encode()) % HUES
