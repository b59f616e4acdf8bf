"""The only place that decides whether an incoming state wins. Pure: no clock, database or settings.

Folding states with `decide` is commutative, associative and idempotent, because it keeps their maximum. A tombstone is
greater than any live state of the same id; otherwise the later state is greater. The exception is an id that can be
created again: there, a delete event is ordered by its time like any other event. For all other ids, times alone cannot
order a tombstone, because a `*.deleted` payload has the `updated_at` of the last live state (docs/workos.md). Where the
times of two different states are equal, nobody knows which is newer: the one that grants less access wins until a
confirmed read.

Payloads may omit some columns, and absent is not null. Each of these *optional columns* has a version of its own, that
of the payload that contained it. The highest wins, whichever state wins otherwise, so they too are a maximum.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from models.outcomes import Finding, Outcome

Content = Mapping[str, Any]
"""The columns of one object by name, as the kind's module in `worker.kinds` reads them from JSON."""
TieBreak = Callable[[Content], tuple[int, ...]]
"""Ranks live contents for states whose times are equal: the greater grants less access, and wins."""
LOCAL_COLUMNS = frozenset({"role", "workos_role", "normalized"})
"""Content columns that WorkOS does not send: this project computes them (by ROLE_MAP or by normalization)."""
NO_EVENT = ""
"""The `event_id` of a state that was read from the API."""
DATE_STEP = timedelta(seconds=1)
"""The resolution of the `Date` header of WorkOS's answers.

The `event_at` of a state read from the API is the end of that second. If deletes of its kind are not final, it is the
state's own `updated_at` (`worker.kinds.read_object`).
"""


@dataclass(frozen=True, slots=True)
class Version:
    """The time of a state, in UTC. States are ordered by `updated_at`, then by the event's time."""

    updated_at: datetime
    event_at: datetime
    event_id: str
    """The id of the event that contained the state, or `NO_EVENT`."""

    @property
    def times(self) -> tuple[datetime, datetime]:
        """The key by which states are ordered. Equal times of two events do not say which is newer."""
        return self.updated_at, self.event_at

    @property
    def from_api(self) -> bool:
        """Whether the state was read from the API, not sent in an event."""
        return not self.event_id

    @property
    def rank(self) -> tuple[datetime, datetime, bool, str]:
        """A total order: by times; then events before reads from the API; then by event id."""
        return *self.times, self.from_api, self.event_id

    def ties(self, other: "Version") -> bool:
        """Return whether both have the same times but come from different events."""
        return self.times == other.times and self.event_id != other.event_id


@dataclass(frozen=True, slots=True)
class State:
    """The state of one object at one version, stored or incoming."""

    version: Version
    deleted: bool
    content: Content
    by_read: bool = False
    """For a tombstone: whether it comes from a 404 of the API and not from a delete event."""
    erased: bool = False
    """Whether personal data has been blanked and must not be restored. A user must be deleted; a membership or an
    invitation may be live."""
    versions: Mapping[str, Version] = field(default_factory=dict)
    """The version of each optional column that a payload has contained. The other optional columns are None in
    `content`."""

    @property
    def since(self) -> datetime:
        """When the object came into this state, by WorkOS's clock. Meaningless for a tombstone of a resync."""
        return self.version.event_at if self.deleted else self.version.updated_at

    @property
    def finality(self) -> tuple[bool, bool, bool]:
        """How final the state is: an erasure outranks a delete event, which outranks a resync.

        In `decide`, a state does not replace one of higher finality. The exception is an id that can be created again
        and that an event deleted: there the later state wins. A confirmed read also replaces the tombstone of a resync.
        """
        return self.deleted and self.erased, self.deleted, self.deleted and not self.by_read


def no_tie_break(_content: Content) -> tuple[int, ...]:
    """Rank all live contents alike, for objects that grant no access by themselves."""
    return ()


def decide(
    current: State | None, incoming: State, *, delete_is_final: bool = True, tie_break: TieBreak = no_tie_break
) -> tuple[State, Outcome]:
    """Return the state to keep, and the outcome for `incoming`.

    `current` is None if the id was never seen. `delete_is_final` is False for objects that are identified by a slug and
    can be created again.
    """
    if current is None:
        return incoming, Outcome.APPLIED
    lost: Outcome | None = None
    if _is_outranked(incoming, current, delete_is_final=delete_is_final):
        lost = Outcome.TOMBSTONED
    elif _loses(incoming, current, tie_break) and not (delete_is_final and incoming.finality > current.finality):
        lost = Outcome.STALE
    state = _joined(current, incoming) if lost else _joined(incoming, current)
    if not _same(current, state):
        return state, Outcome.APPLIED
    # Keep the stored content: `LOCAL_COLUMNS` may differ, and a difference would require a row in `changes`.
    return (state, lost) if lost else (replace(state, content=current.content), Outcome.UNCHANGED)


def _is_outranked(incoming: State, current: State, *, delete_is_final: bool) -> bool:
    return current.finality > incoming.finality and (delete_is_final or current.by_read)


def _joined(winner: State, other: State) -> State:
    """Return `winner` with the optional columns that have a higher version in `other`."""
    if winner.erased:
        return winner
    newer = [
        name
        for name, version in other.versions.items()
        if name not in winner.versions or winner.versions[name].rank < version.rank
    ]
    return _with_columns(winner, other, newer)


def _with_columns(state: State, other: State, names: Collection[str]) -> State:
    """Return `state` with these columns of `other`, and their versions."""
    if not names:
        return state
    content = {**state.content, **{name: other.content[name] for name in names}}
    versions = {**state.versions, **{name: other.versions[name] for name in names}}
    return replace(state, content=content, versions=versions)


def _loses(one: State, other: State, tie_break: TieBreak) -> bool:
    """Return whether `one` is older than `other`, or their times are equal and `other` is the one to keep."""
    if one.version.ties(other.version):
        return _tie_rank(one, tie_break) < _tie_rank(other, tie_break)
    return one.version.times < other.version.times


def _tie_rank(state: State, tie_break: TieBreak) -> tuple[bool, tuple[int, ...], bool, str]:
    """Rank states of the same times; the highest wins: deleted, less access, read from the API, higher event id."""
    content = () if state.deleted else tie_break(state.content)
    return state.deleted, content, state.version.from_api, state.version.event_id


class ConfirmationReason(StrEnum):
    """Why an event requires a confirmed read."""

    TIE = "another state at the same time"
    UNDER_TOMBSTONE = "event for an object that a read found deleted"
    SAME_SECOND = "event in the second in which the API was read"


def needs_confirmation(
    current: State | None, incoming: State, *, delete_is_final: bool = True
) -> ConfirmationReason | None:
    """Return why the decision about an event requires a confirmed read; None if it does not.

    A read is required if a resync found the object deleted, if the times of two different states are equal, or if the
    stored state was read from the API in the second of the event: only another read shows which is newer.
    `delete_is_final` has the same meaning as for `decide`.
    """
    if current is None:
        return None
    if _is_outranked(incoming, current, delete_is_final=delete_is_final):
        return ConfirmationReason.UNDER_TOMBSTONE if current.by_read else None
    if (delete_is_final and incoming.deleted) or _same(current, fill_omitted(current, incoming)):
        return None  # a final delete settles it
    event, stored = incoming.version, {current.version, *current.versions.values()}
    if any(version.ties(event) for version in stored):
        return ConfirmationReason.TIE
    read_at = [version.event_at for version in stored if version.from_api and event.times < version.times]
    return ConfirmationReason.SAME_SECOND if any(at - event.event_at <= DATE_STEP for at in read_at) else None


def recorded_content(content: Content, *, deleted: bool) -> dict[str, Any]:
    """Return content as `changes` contains it: with `state`, and times as ISO 8601 text in UTC."""
    values = {name: value.isoformat() if isinstance(value, datetime) else value for name, value in content.items()}
    return {"state": "deleted" if deleted else "active", **values}


def compare_listed(current: State | None, listed: State) -> tuple[State | None, Finding | None]:
    """Compare the mirror with an object of a listing; return the state to keep, and the finding.

    The finding is None if a confirmed read must decide. A listing may be older than an event applied since. So it
    decides only about what is missing or strictly older in the mirror. It never restores a deleted object and never
    wins a tie. It fills optional columns that no payload has contained yet, with its own version; this is not reported
    as a difference.
    """
    if current is None:
        return listed, Finding.MISSING
    if current.deleted:
        return current, None
    read = fill_omitted(current, listed)
    filled = _with_columns(current, listed, listed.versions.keys() - current.versions.keys())
    is_same = _same(filled, read)
    if all(version.updated_at < listed.version.updated_at for version in (current.version, *current.versions.values())):
        return read, Finding.EQUAL if is_same else Finding.STALE
    return (filled, Finding.EQUAL) if is_same else (current, None)


def fill_omitted(current: State | None, read: State) -> State:
    """Return `read`, with columns that it omits filled from `current`, such as the reason why a domain failed."""
    if current is None:
        return read
    shown = replace(read, content={**current.content, **read.content})
    return _with_columns(shown, current, current.versions.keys() - read.versions.keys())


def confirm(current: State | None, read: State | None, *, delete_is_final: bool = True) -> tuple[State | None, Finding]:
    """Return the state to keep after a confirmed read, and the finding; `read` is None for a 404 of WorkOS.

    A confirmed read wins over any live state, even one whose `updated_at` is wrongly in the future, and over a
    tombstone of a read. With `delete_is_final`, it never wins over a delete event. `current` must not have
    changed since the read began.
    """
    if read is None:
        if current is None or current.deleted:
            return current, Finding.EQUAL
        return replace(current, deleted=True, by_read=True), Finding.EXTRA
    if current is None:
        return read, Finding.MISSING
    read = fill_omitted(current, read)
    if delete_is_final and current.deleted and not current.by_read:
        return current, Finding.ANOMALY
    if current.deleted:
        return read, Finding.MISSING
    return read, Finding.EQUAL if _same(current, read) else Finding.DIFFERENT


def _same(one: State, other: State) -> bool:
    """Return whether two states are equal. `LOCAL_COLUMNS` of deleted objects are ignored: they are never updated."""
    if one.deleted != other.deleted:
        return False
    return one.content == other.content or (one.deleted and _sent(one.content) == _sent(other.content))


def _sent(content: Content) -> Content:
    return {name: value for name, value in content.items() if name not in LOCAL_COLUMNS}
