"""The results of a decision about an incoming state, and of a comparison with WorkOS."""

from enum import StrEnum


class Outcome(StrEnum):
    """The result of a decision about an incoming state."""

    APPLIED = "applied"
    UNCHANGED = "unchanged"
    STALE = "stale"
    TOMBSTONED = "tombstoned"
    IGNORED = "ignored"


class Finding(StrEnum):
    """How an object in the mirror differs from WorkOS's API."""

    EQUAL = "equal"
    MISSING = "missing"
    """In WorkOS, not in the mirror."""
    EXTRA = "extra"
    """In the mirror, not in WorkOS."""
    STALE = "stale"
    """Older in the mirror than in WorkOS."""
    DIFFERENT = "different"
    """A read showed another content."""
    ANOMALY = "anomaly"
    """The API returns an id that a delete event removed."""
    INVALID = "invalid"
    """WorkOS's answer for the object cannot be read or used."""
