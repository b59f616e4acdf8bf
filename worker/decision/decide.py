"""The one place that decides whether incoming state wins. Pure: no clock, no database, no settings.

Folding states with `decide` is commutative, associative and idempotent: it takes the greatest of them, where a
tombstone is greater than any live state of the same id, and otherwise the higher version is greater. Why a
tombstone and not the newer one: a `*.deleted` payload carries the `updated_at` of the last live one (docs/workos.md).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

DERIVED = frozenset({"role", "workos_role", "normalized"})
"""Content that is worked out here (by ROLE_MAP, by normalization) from what WorkOS sent."""
DATE_STEP = timedelta(seconds=1)
"""WorkOS tells the time of a reading in whole seconds: its version carries the end of that second."""


class Outcome(StrEnum):
    """What became of an incoming state."""

    APPLIED = "applied"
    UNCHANGED = "unchanged"
    STALE = "stale"
    TOMBSTONED = "tombstoned"
    IGNORED = "ignored"


@dataclass(frozen=True, slots=True, order=True)
class Version:
    """Orders the states of one object: WorkOS's `updated_at`, then the event's time, then its id. Times are UTC."""

    updated_at: datetime
    event_at: datetime
    event_id: str


@dataclass(frozen=True, slots=True)
class State:
    """All that is known of one object at one version, stored or incoming."""

    version: Version
    deleted: bool
    content: Mapping[str, Any]
    by_resync: bool = False
    """Of a tombstone: made because WorkOS's API did not know the id, not by a delete event."""
    erased: bool = False
    """Of a tombstone: what was personal in it is gone, and no event may bring it back."""

    @property
    def finality(self) -> int:
        """0 live, 1 a resync's tombstone, 2 a delete event's, 3 an erased one: which no other outranks."""
        return 0 if not self.deleted else 3 if self.erased else 1 if self.by_resync else 2


def decide(current: State | None, incoming: State, *, terminal: bool = True) -> tuple[State, Outcome]:
    """Return the state to keep and what became of `incoming`.

    Args:
        current: the stored state; None if the id was never seen.
        incoming: the state an event brings.
        terminal: whether a delete is for good. True for every id of WorkOS; False for roles, which have only a slug
            and can be made again.
    """
    if current is None:
        return incoming, Outcome.APPLIED
    if current.finality > incoming.finality and (terminal or current.by_resync):
        return current, Outcome.TOMBSTONED
    if incoming.version < current.version and not (terminal and incoming.finality > current.finality):
        return current, Outcome.STALE
    if _same(current, incoming):
        # The content as it is stored: what is derived may differ, and a row of `changes` would have to say so.
        return replace(incoming, content=current.content), Outcome.UNCHANGED
    return incoming, Outcome.APPLIED


class ConfirmationReason(StrEnum):
    """Why only a confirmed read can tell what is true after an event."""

    UNDER_TOMBSTONE = "event under a resync's tombstone"
    SAME_SECOND = "event of the second in which the API was read"


def needs_confirmation(current: State | None, incoming: State, outcome: Outcome) -> ConfirmationReason | None:
    """Return what the decision about an event leaves in doubt, if anything.

    A resync found the object gone; or the stored state was read from the API in the second of the event, and whether
    before or after it only another reading tells.
    """
    if current is None:
        return None
    if outcome is Outcome.TOMBSTONED and current.by_resync:
        return ConfirmationReason.UNDER_TOMBSTONE
    if outcome is Outcome.STALE and not current.version.event_id and not _same(current, incoming):
        before_the_end = current.version.event_at - incoming.version.event_at
        return ConfirmationReason.SAME_SECOND if before_the_end <= DATE_STEP else None
    return None


def shown(content: Mapping[str, Any], *, deleted: bool) -> dict[str, Any]:
    """Return content as `changes` shows it: with its `state`, times as ISO 8601 text in UTC."""
    told = {name: value.isoformat() if isinstance(value, datetime) else value for name, value in content.items()}
    return {"state": "deleted" if deleted else "active", **told}


class Finding(StrEnum):
    """How the mirror stood to what WorkOS's API shows: the kinds of drift, and none."""

    NONE = "none"
    MISSING = "missing"
    EXTRA = "extra"
    STALE = "stale"
    DIFFERENT = "different"
    ANOMALY = "anomaly"
    """WorkOS shows an id that a delete event removed."""


def compare_listed(current: State | None, listed: State) -> Finding | None:
    """Return how the mirror stands to an object of a listing; None if only a confirmed read can tell.

    A listing may be older than what was applied since. So it settles only what is missing and what is strictly older
    here; it neither revives nor wins a tie.
    """
    if current is None:
        return Finding.MISSING
    if current.deleted:
        return None
    if _same(current, completed(current, listed)):
        return Finding.NONE
    return Finding.STALE if is_newer(current, listed) else None


def is_newer(current: State | None, listed: State) -> bool:
    """Whether an object of a listing is strictly newer than the stored one: by WorkOS's own `updated_at` alone."""
    return current is not None and listed.version.updated_at > current.version.updated_at


def completed(current: State | None, read: State) -> State:
    """Return `read` with what the API never tells (why a domain failed) taken from `current`."""
    return replace(read, content={**current.content, **read.content}) if current is not None else read


def confirm(current: State | None, read: State | None, *, terminal: bool = True) -> tuple[State | None, Finding]:
    """Return the state to keep after a confirmed read, and what the read found.

    A confirmed read outranks versions, so that a wrongly future `updated_at` heals, and a resync's tombstone; never
    a delete event.

    Args:
        current: the stored state, unchanged since before the read; None if the id was never seen.
        read: what WorkOS answered for this id; None for its 404.
        terminal: as for `decide`.
    """
    if read is None:
        if current is None or current.deleted:
            return current, Finding.NONE
        return State(current.version, deleted=True, content=current.content, by_resync=True), Finding.EXTRA
    if current is None:
        return read, Finding.MISSING
    read = completed(current, read)
    if terminal and current.deleted and not current.by_resync:
        return current, Finding.ANOMALY
    if current.deleted:
        return read, Finding.MISSING
    return read, Finding.NONE if _same(current, read) else Finding.DIFFERENT


def _same(one: State, other: State) -> bool:
    """Whether two states say the same. Of deleted objects only what WorkOS sent counts: nobody derives it again."""
    if one.deleted != other.deleted:
        return False
    return one.content == other.content or (one.deleted and _sent(one.content) == _sent(other.content))


def _sent(content: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name not in DERIVED}
