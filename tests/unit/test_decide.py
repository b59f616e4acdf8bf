"""The decision: a history folds to one state, in any order and with any duplicates."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import reduce
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.outcomes import Finding, Outcome
from worker.decision.decide import (
    DATE_STEP,
    ConfirmationReason,
    Content,
    State,
    Version,
    compare_listed,
    completed,
    confirm,
    decide,
    is_newer,
    needs_confirmation,
    recorded_content,
)
from worker.decision.roles import LOCAL_ROLES
from worker.kinds import KINDS, Kind

NOON = datetime(2025, 7, 1, 12, tzinfo=UTC)

# Few instants and few contents, so that ties and equal contents are common.
instants = st.integers(0, 2).map(lambda seconds: NOON + timedelta(seconds=seconds))
event_ids = st.text("abAB1_", min_size=1, max_size=3)
CONTENTS: dict[str, list[Content]] = {
    "organization": [{"name": "a"}, {"name": "b"}],
    "user": [{"email": "a", "email_verified": flag, "first_name": name} for flag in (True, False) for name in "xy"],
    "membership": [
        {"status": status, "workos_roles": [role], "role": role, "directory_managed": flag}
        for status in ("active", "inactive", "pending", None)
        for role in LOCAL_ROLES
        for flag in (True, False)
    ],
    "domain": [{"verification": state} for state in ("verified", "legacy_verified", "pending", "failed", None)],
    "connection": [{"status": state, "name": name} for state in ("active", "inactive", None) for name in "xy"],
    "role": [{"permissions": ["a"]}, {"permissions": ["a", "b"]}],
    "permission": [{"name": "a"}, {"name": "b"}],
    "saml_certificate": [{"expires_at": 1}, {"expires_at": 2}],
    "invitation": [{"status": status} for status in ("pending", "accepted", "revoked", "expired", "new", None)],
}
"""Contents of each kind of object, with what grants access and what does not."""


LIKE = {"new": None, "expired": "accepted"}
"""Statuses of invitations that grant as much as another."""


def states_of(kind: Kind) -> st.SearchStrategy[State]:
    version = st.builds(Version, instants, instants, event_ids)
    return st.builds(State, version, st.booleans(), st.sampled_from(CONTENTS[kind.name]))


states = states_of(KINDS["organization"])


class History(NamedTuple):
    """The states of one object, in order of arrival."""

    kind: Kind
    states: list[State]


kinds = st.sampled_from(sorted(KINDS.values(), key=str))


def histories_of(kind: Kind) -> st.SearchStrategy[list[State]]:
    # One event id carries one state, so no two states of a history share it.
    return st.lists(states_of(kind), min_size=1, max_size=8, unique_by=lambda state: state.version.event_id)


histories = kinds.flatmap(lambda kind: st.builds(History, st.just(kind), histories_of(kind)))


def decided(kind: Kind, current: State | None, incoming: State) -> tuple[State, Outcome]:
    return decide(current, incoming, terminal=kind.delete_is_final, tie_break=kind.tie_break)


def fold(history: Iterable[State], kind: Kind = KINDS["organization"]) -> State:
    end = reduce(lambda current, incoming: decided(kind, current, incoming)[0], history, None)
    assert end is not None
    return end


def grants(kind: Kind, state: State) -> tuple[Any, ...]:
    """What a live state grants, from least to most."""
    content = state.content
    match kind.name:
        case "membership":
            return content["status"] == "active", content["role"] == "admin"
        case "domain":
            return (content["verification"] in {"verified", "legacy_verified"},)
        case "user":
            return (content["email_verified"],)
        case "connection":
            return (content["status"] == "active",)
        case "invitation":  # from one that blocks until an operator acts to one that does not block
            return (["revoked", None, "pending", "accepted"].index(LIKE.get(content["status"], content["status"])),)
    return ()


def greatest(kind: Kind, history: list[State]) -> State:
    """The state that must win: the newest, and of states with the same times the one that grants the least."""
    deleted = [state for state in history if state.deleted]
    left = deleted if deleted and kind.delete_is_final else history
    newest = max((state.version.updated_at, state.version.event_at) for state in left)
    left = [state for state in left if (state.version.updated_at, state.version.event_at) == newest]
    if tied := [state for state in left if state.deleted]:
        return max(tied, key=lambda state: state.version.event_id)
    least = min(grants(kind, state) for state in left)
    return max((state for state in left if grants(kind, state) == least), key=lambda state: state.version.event_id)


@st.composite
def permuted_histories(draw: st.DrawFn) -> tuple[History, list[State]]:
    """A history, and the same states in another order with duplicates."""
    history = draw(histories)
    repeated = draw(st.lists(st.sampled_from(history.states), max_size=6))
    return history, draw(st.permutations(history.states + repeated))


@given(permuted_histories())
@settings(deadline=None, max_examples=500)
def test_any_order_with_any_duplicates_folds_to_the_same_state(histories: tuple[History, list[State]]) -> None:
    (kind, history), permuted = histories
    assert fold(permuted, kind) == fold(history, kind)


@given(histories)
@settings(deadline=None, max_examples=500)
def test_a_final_delete_or_the_newest_or_of_a_tie_the_least_access_wins(history: History) -> None:
    assert fold(history.states, history.kind) == greatest(history.kind, history.states)


@given(histories, st.data())
@settings(deadline=None)
def test_halves_folded_separately_give_the_same_state(history: History, data: st.DataObject) -> None:
    kind, a = history
    b = data.draw(histories_of(kind))
    b = [replace(s, version=replace(s.version, event_id=f"b/{s.version.event_id}")) for s in b]
    assert fold([fold(a, kind), fold(b, kind)], kind) == fold(a + b, kind)


@given(histories, st.data())
@settings(deadline=None)
def test_only_the_outcome_applied_changes_visible_state(history: History, data: st.DataObject) -> None:
    kind, before = history.kind, fold(history.states, history.kind)
    after, outcome = decided(kind, before, data.draw(states_of(kind)))
    seen = (before.deleted, before.content), (after.deleted, after.content)
    if outcome is not Outcome.APPLIED:
        assert seen[0] == seen[1]
    if outcome in {Outcome.STALE, Outcome.TOMBSTONED}:
        assert after is before


@given(permuted_histories())
@settings(deadline=None, max_examples=500)
def test_a_tie_of_different_states_always_requires_a_confirmed_read(histories: tuple[History, list[State]]) -> None:
    (kind, history), permuted = histories
    current, reasons = None, set()
    for incoming in permuted:
        state, outcome = decided(kind, current, incoming)
        reasons.add(needs_confirmation(current, incoming, outcome, terminal=kind.delete_is_final))
        current = state
    assert current is not None
    rivals = [state for state in history if state.version.ties(current.version)]
    different = any((state.deleted, state.content) != (current.deleted, current.content) for state in rivals)
    if different and not (kind.delete_is_final and current.deleted):
        assert ConfirmationReason.TIE in reasons


MEMBER = {"status": "active", "role": "member"}


@pytest.mark.parametrize(
    ("kind", "kept", "lost"),
    [
        ("membership", MEMBER, MEMBER | {"role": "admin"}),
        ("membership", MEMBER | {"status": "inactive", "role": "admin"}, MEMBER),
        ("membership", MEMBER | {"status": None}, MEMBER),
        ("domain", {"verification": "failed"}, {"verification": "verified"}),
        ("domain", {"verification": "pending"}, {"verification": "legacy_verified"}),
        ("user", {"email_verified": False}, {"email_verified": True}),
        ("connection", {"status": "inactive"}, {"status": "active"}),
    ],
)
@pytest.mark.parametrize(("kept_id", "lost_id"), [("event_01K", "event_01Z"), ("event_01Z", "event_01K")])
def test_a_tie_keeps_the_state_that_grants_less(
    kind: str, kept: Content, lost: Content, kept_id: str, lost_id: str
) -> None:
    less, more = State(Version(NOON, NOON, kept_id), False, kept), State(Version(NOON, NOON, lost_id), False, lost)
    for history in ([less, more], [more, less]):
        assert fold(history, KINDS[kind]) == less
        current, incoming = history
        _, outcome = decided(KINDS[kind], current, incoming)
        assert needs_confirmation(current, incoming, outcome) is ConfirmationReason.TIE


def test_a_tie_keeps_what_was_read_before_what_an_event_says() -> None:
    read = State(Version(NOON, NOON, ""), False, {"permissions": ["a"]})
    event = State(Version(NOON, NOON, "event_1"), False, {"permissions": ["b"]})
    kept, outcome = decided(KINDS["role"], read, event)
    assert (kept, outcome) == (read, Outcome.STALE)
    assert needs_confirmation(read, event, outcome, terminal=False) is ConfirmationReason.TIE


def at(updated: int, event: int = 0, event_id: str = "e1", *, name: str = "a", deleted: bool = False) -> State:
    version = Version(NOON + timedelta(seconds=updated), NOON + timedelta(seconds=event), event_id)
    return State(version, deleted, {"name": name})


@pytest.mark.parametrize(
    ("current", "incoming", "outcome"),
    [
        (None, at(1), Outcome.APPLIED),
        (None, at(1, deleted=True), Outcome.APPLIED),
        (at(1), at(2, name="b"), Outcome.APPLIED),
        (at(2), at(1, name="b"), Outcome.STALE),
        (at(1), at(2, event_id="e2"), Outcome.UNCHANGED),
        (at(1), at(1), Outcome.UNCHANGED),
        (at(2), at(2, event_id="e2", deleted=True), Outcome.APPLIED),
        (at(3), at(1, event_id="e2", deleted=True), Outcome.APPLIED),
        (at(1, deleted=True), at(3, event_id="e2", name="b"), Outcome.TOMBSTONED),
        (at(1, deleted=True), at(1, deleted=True), Outcome.UNCHANGED),
        (at(2, deleted=True), at(1, deleted=True), Outcome.STALE),
    ],
)
def test_outcome_of_one_decision(current: State | None, incoming: State, outcome: Outcome) -> None:
    assert decide(current, incoming)[1] is outcome


@pytest.mark.parametrize(
    ("current", "incoming", "outcome"),
    [
        (at(1, deleted=True), at(2, event_id="e2"), Outcome.APPLIED),
        (at(2), at(1, event_id="e2", deleted=True), Outcome.STALE),
        (at(1), at(1, event_id="e2", deleted=True), Outcome.APPLIED),
    ],
)
def test_outcome_where_a_delete_is_not_final(current: State, incoming: State, outcome: Outcome) -> None:
    assert decide(current, incoming, terminal=False)[1] is outcome


@pytest.mark.parametrize("higher", [at(1, 0, "e2", name="b"), at(1, 1, "e0", name="b"), at(2, 0, "e0", name="b")])
def test_a_tie_is_broken_by_event_time_and_then_by_event_id(higher: State) -> None:
    lower = at(1, 0, "e1")
    assert fold([lower, higher]) == fold([higher, lower]) == higher


def test_the_same_content_at_a_higher_version_raises_the_version() -> None:
    kept, outcome = decide(at(1), at(5, event_id="e5"))
    assert outcome is Outcome.UNCHANGED
    assert kept.version == at(5, event_id="e5").version
    # Otherwise this older state would win:
    assert decide(kept, at(3, event_id="e3", name="b"))[1] is Outcome.STALE


def read_at(seconds: int, *, updated: int = 0, name: str = "a", gone: bool = False) -> State:
    """The state that the API showed in that second; with `gone`, a 404."""
    version = Version(NOON + timedelta(seconds=updated), NOON + timedelta(seconds=seconds) + DATE_STEP, "")
    return State(version, gone, {"name": name}, by_resync=gone)


@pytest.mark.parametrize(
    ("current", "incoming", "left"),
    [
        (read_at(5), at(0, 5, name="b"), ConfirmationReason.SAME_SECOND),
        (read_at(5), at(0, 5, name="a"), None),  # the read showed the same content
        (read_at(5), at(0, 4, name="b"), None),  # before that second: the read includes it
        (read_at(5), at(0, 7, name="b"), None),  # after it: it wins
        (at(0, 6, "e1"), at(0, 5, "e0", name="b"), None),  # two events are in order
        (read_at(5, gone=True), at(0, 9, name="b"), ConfirmationReason.UNDER_TOMBSTONE),
        (at(0, 5, deleted=True), at(0, 9, "e2", name="b"), None),
        (None, at(0, 5), None),
    ],
)
def test_decisions_that_need_confirmation(
    current: State | None, incoming: State, left: ConfirmationReason | None
) -> None:
    assert needs_confirmation(current, incoming, decide(current, incoming)[1]) is left


EARLIEST, LATEST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)


@given(states, states, st.sampled_from([EARLIEST, LATEST]))
@settings(deadline=None)
def test_only_an_event_after_the_read_needs_another_read(current: State, event: State, read_at: datetime) -> None:
    """The first and the last time that a `datetime` can be are compared too."""
    shown = replace(current, version=replace(current.version, event_at=read_at, event_id=""))
    outcome = decide(shown, event)[1]
    lost = outcome is Outcome.STALE and (shown.deleted, shown.content) != (event.deleted, event.content)
    wanted = ConfirmationReason.SAME_SECOND if lost and read_at == EARLIEST else None
    assert needs_confirmation(shown, event, outcome) is wanted
    assert needs_confirmation(event, shown, decide(event, shown)[1]) is None


def gone(updated: int, *, by_resync: bool = False, erased: bool = False) -> State:
    return replace(at(updated, deleted=True), by_resync=by_resync, erased=erased)


@pytest.mark.parametrize(
    ("current", "incoming", "terminal", "outcome"),
    [
        (gone(5, by_resync=True), at(9, name="b"), True, Outcome.TOMBSTONED),
        (gone(5, by_resync=True), at(9, name="b"), False, Outcome.TOMBSTONED),
        (gone(5, by_resync=True), gone(1), True, Outcome.UNCHANGED),
        (gone(5, erased=True), gone(9), True, Outcome.TOMBSTONED),
        (gone(5), gone(1, erased=True), True, Outcome.UNCHANGED),
    ],
)
def test_an_erasure_outranks_a_delete_event_which_outranks_a_resync(
    current: State, incoming: State, terminal: bool, outcome: Outcome
) -> None:
    kept, found = decide(current, incoming, terminal=terminal)
    assert found is outcome
    assert kept == (current if outcome is Outcome.TOMBSTONED else incoming)


def test_an_event_within_the_second_of_a_read_needs_confirmation() -> None:
    reading = read_at(5)
    end = reading.version.event_at
    for age, left in ((DATE_STEP, ConfirmationReason.SAME_SECOND), (DATE_STEP + timedelta(microseconds=1), None)):
        event = at(0, name="b")
        event = replace(event, version=replace(event.version, event_at=end - age))
        assert needs_confirmation(reading, event, decide(reading, event)[1]) is left


@pytest.mark.parametrize(
    ("current", "listed", "finding"),
    [
        (None, at(1), Finding.MISSING),
        (at(1, deleted=True), at(5), None),
        (gone(1, by_resync=True), at(5), None),
        (at(1), at(1), Finding.EQUAL),
        (at(5), at(1), Finding.EQUAL),
        (at(1), at(2, name="b"), Finding.STALE),
        (at(2), at(2, 9, "e9", name="b"), None),
        (at(2), at(1, name="b"), None),
    ],
)
def test_a_listing_settles_only_what_is_missing_or_strictly_newer(
    current: State | None, listed: State, finding: Finding | None
) -> None:
    assert compare_listed(current, listed) is finding


def test_a_listed_object_is_newer_by_its_own_time_alone() -> None:
    assert [is_newer(at(2), at(updated, 9, "e9")) for updated in (1, 2, 3)] == [False, False, True]
    assert is_newer(None, at(9)) is False


def with_reason(name: str) -> State:
    """As `at(1)`, with a field that the API never shows."""
    return replace(at(1), content={"name": name, "reason": "expired"})


def test_fields_that_the_api_never_shows_are_kept() -> None:
    assert completed(None, at(2)) == at(2)
    assert completed(with_reason("a"), at(2, name="b")) == replace(at(2), content={"name": "b", "reason": "expired"})
    assert compare_listed(with_reason("a"), at(2)) is Finding.EQUAL
    assert confirm(with_reason("a"), at(2)) == (
        replace(at(2), content={"name": "a", "reason": "expired"}),
        Finding.EQUAL,
    )


@pytest.mark.parametrize(
    ("current", "read", "kept", "finding"),
    [
        (None, None, None, Finding.EQUAL),
        (gone(1), None, gone(1), Finding.EQUAL),
        (gone(1, by_resync=True), None, gone(1, by_resync=True), Finding.EQUAL),
        (at(1), None, gone(1, by_resync=True), Finding.EXTRA),
        (None, at(1), at(1), Finding.MISSING),
        (gone(1), at(5), gone(1), Finding.ANOMALY),
        (gone(9, by_resync=True), at(5), at(5), Finding.MISSING),
        (at(9), at(5), at(5), Finding.EQUAL),
        (at(9), at(5, name="b"), at(5, name="b"), Finding.DIFFERENT),
    ],
)
def test_a_confirmed_read_outranks_versions_and_a_resyncs_tombstone_but_no_delete_event(
    current: State | None, read: State | None, kept: State | None, finding: Finding
) -> None:
    assert confirm(current, read) == (kept, finding)


def test_a_confirmed_read_revives_objects_that_can_be_recreated() -> None:
    assert confirm(gone(1), at(5), terminal=False) == (at(5), Finding.MISSING)


@pytest.mark.parametrize(("deleted", "state"), [(True, "deleted"), (False, "active")])
def test_content_is_shown_with_its_state_and_times_as_text(deleted: bool, state: str) -> None:
    found = recorded_content({"name": "a", "created_at": NOON, "reason": None}, deleted=deleted)
    assert found == {"state": state, "name": "a", "created_at": "2025-07-01T12:00:00+00:00", "reason": None}
