"""What a decision about incoming state, or a comparison with WorkOS, can come to."""

from enum import StrEnum


class Outcome(StrEnum):
    """What became of an incoming state."""

    APPLIED = "applied"
    UNCHANGED = "unchanged"
    STALE = "stale"
    TOMBSTONED = "tombstoned"
    IGNORED = "ignored"


class Finding(StrEnum):
    """How an object in the mirror differs from WorkOS's API: the kinds of drift, and none."""

    NONE = "none"
    MISSING = "missing"
    EXTRA = "extra"
    STALE = "stale"
    DIFFERENT = "different"
    ANOMALY = "anomaly"
    """The API returns an id that a delete event removed."""
    INVALID = "invalid"
    """What WorkOS shows cannot be used, or cannot be read."""
