"""The one place that decides whether incoming state wins. Pure: no clock, no database, no settings.

Folding states with `decide` is commutative, associative and idempotent: it takes the greatest of them, where a
tombstone is greater than any live state of the same id, and otherwise the higher version is greater. Why a
tombstone and not the newer one: a `*.deleted` payload carries the `updated_at` of the last live one (WORKOS.md).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any


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
    if terminal and current.deleted != incoming.deleted:
        return (current, Outcome.TOMBSTONED) if current.deleted else (incoming, Outcome.APPLIED)
    if incoming.version < current.version:
        return current, Outcome.STALE
    same = current.deleted == incoming.deleted and current.content == incoming.content
    return incoming, Outcome.UNCHANGED if same else Outcome.APPLIED
