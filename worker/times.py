"""Times as people write them, and durations as they read them."""

import re
from datetime import UTC, datetime, timedelta

TIME_FORMS = (
    "write ISO 8601 such as 2026-01-31 or 2026-01-31T12:30:00.123Z, in UTC unless it has an offset; "
    "an age such as 90s, 30m, 2h, 3d or 1w; or now, today or yesterday"
)
UNITS = {"s": "seconds", "m": "minutes", "min": "minutes", "h": "hours", "d": "days", "w": "weeks"}
DAYS = {"today": 0, "yesterday": 1}
"""Words for the midnight, in UTC, that many days ago."""


def parse_time(text: str) -> datetime:
    """Return the time that a text names, in UTC, in one of the forms of `TIME_FORMS`.

    A time without an offset is in UTC, and so are the days of `today` and `yesterday`.

    Raises:
        ValueError, OverflowError: the text names no time.
    """
    text, now = text.strip().lower(), datetime.now(UTC)
    if text == "now":
        return now
    if text in DAYS:
        return now.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=DAYS[text])
    if age := re.fullmatch(r"([0-9]+) ?(s|min|m|h|d|w)( ago)?", text):
        return now - timedelta(**{UNITS[age[2]]: int(age[1])})
    given = datetime.fromisoformat(text.upper())
    return given.replace(tzinfo=given.tzinfo or UTC).astimezone(UTC)


def duration(seconds: float) -> str:
    """Return a duration in its two largest units, such as `2 h 5 min`."""
    parts = []
    for name, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        number, seconds = divmod(seconds, size)
        if number:
            parts.append(f"{number:.0f} {name}")
    return " ".join(parts[:2]) or "0 s"
