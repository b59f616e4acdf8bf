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
    confirm,
    decide,
    fill_omitted,
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


def state_of(kind: Kind, version: Version, deleted: bool, content: Content, given: Content) -> State:
    """The state in a payload that has these of the columns that it may omit."""
    versions = dict.fromkeys(given, version)
    return State(version, deleted, dict.fromkeys(kind.optional) | dict(content) | dict(given), versions=versions)


def states_of(kind: Kind) -> st.SearchStrategy[State]:
    version = st.builds(Version, instants, instants, event_ids)
    values = st.sampled_from([None, "x", "y"])
    given = st.fixed_dictionaries({}, optional=dict.fromkeys(kind.optional, values))
    return st.builds(state_of, st.just(kind), version, st.booleans(), st.sampled_from(CONTENTS[kind.name]), given)


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
    return decide(current, incoming, delete_is_final=kind.delete_is_final, tie_break=kind.tie_break)


def fold(history: Iterable[State], kind: Kind = KINDS["organization"]) -> State:
    end = reduce(lambda current, incoming: decided(kind, current, incoming)[0], history, None)
    assert end is not None
    return end


def grants(kind: Kind, state: State) -> tuple[Any, ...]:
    """The access that a live state grants, from least to most."""
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
    """The state that must win, with each column that payloads may omit from the newest payload that has it."""
    state = winner(kind, history)
    content, versions = {**state.content}, {}
    for name in kind.optional:
        if having := [other for other in history if name in other.versions]:
            newest = max(having, key=lambda other: other.version.rank)
            content[name], versions[name] = newest.content[name], newest.version
    return replace(state, content=content, versions=versions)


def winner(kind: Kind, history: list[State]) -> State:
    """The newest state, and of states with the same times the one that grants the least."""
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
@settings(deadline=None, max_examples=300)
def test_any_order_with_any_duplicates_folds_to_the_same_state(histories: tuple[History, list[State]]) -> None:
    (kind, history), permuted = histories
    assert fold(permuted, kind) == fold(history, kind)


@given(histories)
@settings(deadline=None, max_examples=300)
def test_a_final_delete_or_the_newest_or_of_a_tie_the_least_access_wins(history: History) -> None:
    assert fold(history.states, history.kind) == greatest(history.kind, history.states)


def with_other_ids(state: State) -> State:
    """The same state from an event that no other history has."""
    version = replace(state.version, event_id=f"b/{state.version.event_id}")
    return replace(state, version=version, versions=dict.fromkeys(state.versions, version))


@given(histories, st.data())
@settings(deadline=None)
def test_halves_folded_separately_give_the_same_state(history: History, data: st.DataObject) -> None:
    kind, a = history
    b = data.draw(histories_of(kind))
    b = [with_other_ids(state) for state in b]
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
        assert replace(after, versions=before.versions) == before


def always(kind: Kind, state: State) -> Content:
    """The columns that no payload omits."""
    return {name: value for name, value in state.content.items() if name not in kind.optional}


@given(permuted_histories())
@settings(deadline=None, max_examples=300)
def test_a_tie_of_different_states_always_requires_a_confirmed_read(histories: tuple[History, list[State]]) -> None:
    (kind, history), permuted = histories
    current, reasons = None, set()
    for incoming in permuted:
        reasons.add(needs_confirmation(current, incoming, delete_is_final=kind.delete_is_final))
        current = decided(kind, current, incoming)[0]
    assert current is not None
    rivals = [state for state in history if state.version.ties(current.version)]
    different = any(
        (state.deleted, always(kind, state)) != (current.deleted, always(kind, current)) for state in rivals
    )
    for name, version in current.versions.items():
        tied = [state for state in history if name in state.versions and state.version.ties(version)]
        different |= any(state.content[name] != current.content[name] for state in tied)
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
        assert needs_confirmation(*history) is ConfirmationReason.TIE


def test_in_a_tie_a_read_wins_over_an_event() -> None:
    read = State(Version(NOON, NOON, ""), False, {"permissions": ["a"]})
    event = State(Version(NOON, NOON, "event_1"), False, {"permissions": ["b"]})
    kept, outcome = decided(KINDS["role"], read, event)
    assert (kept, outcome) == (read, Outcome.STALE)
    assert needs_confirmation(read, event, delete_is_final=False) is ConfirmationReason.TIE


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
    assert decide(current, incoming, delete_is_final=False)[1] is outcome


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


def test_a_deleted_object_keeps_the_local_role_that_is_stored() -> None:
    stored = replace(at(1, deleted=True), content={"status": "active", "role": "admin"})
    again = replace(at(2, event_id="e2", deleted=True), content={"status": "active", "role": "member"})
    kept, outcome = decide(stored, again)
    assert (kept.content, kept.version, outcome) == (stored.content, again.version, Outcome.UNCHANGED)


def read_at(seconds: int, *, updated: int = 0, name: str = "a", gone: bool = False) -> State:
    """The state that the API showed in that second; with `gone`, a 404."""
    version = Version(NOON + timedelta(seconds=updated), NOON + timedelta(seconds=seconds) + DATE_STEP, "")
    return State(version, gone, {"name": name}, by_read=gone)


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
    assert needs_confirmation(current, incoming) is left


EARLIEST, LATEST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)


@given(states, states, st.sampled_from([EARLIEST, LATEST]))
@settings(deadline=None)
def test_only_an_event_after_the_read_needs_another_read(current: State, event: State, read_at: datetime) -> None:
    """The first and the last time that a `datetime` can be are compared too."""
    version = replace(current.version, event_at=read_at, event_id="")
    shown = replace(current, version=version, versions=dict.fromkeys(current.versions, version))
    lost = event.version.times < version.times and shown.content != fill_omitted(shown, event).content
    is_in_doubt = lost and read_at == EARLIEST and not shown.deleted and not event.deleted
    assert needs_confirmation(shown, event) is (ConfirmationReason.SAME_SECOND if is_in_doubt else None)
    assert needs_confirmation(event, shown) is None


def gone(updated: int, *, by_read: bool = False, erased: bool = False) -> State:
    return replace(at(updated, deleted=True), by_read=by_read, erased=erased)


@pytest.mark.parametrize(
    ("current", "incoming", "delete_is_final", "outcome"),
    [
        (gone(5, by_read=True), at(9, name="b"), True, Outcome.TOMBSTONED),
        (gone(5, by_read=True), at(9, name="b"), False, Outcome.TOMBSTONED),
        (gone(5, by_read=True), gone(1), True, Outcome.UNCHANGED),
        (gone(5, erased=True), gone(9), True, Outcome.TOMBSTONED),
        (gone(5), gone(1, erased=True), True, Outcome.UNCHANGED),
    ],
)
def test_an_erasure_outranks_a_delete_event_which_outranks_a_resync(
    current: State, incoming: State, delete_is_final: bool, outcome: Outcome
) -> None:
    kept, found = decide(current, incoming, delete_is_final=delete_is_final)
    assert found is outcome
    assert kept == (current if outcome is Outcome.TOMBSTONED else incoming)


def test_an_event_within_the_second_of_a_read_needs_confirmation() -> None:
    reading = read_at(5)
    end = reading.version.event_at
    for age, left in ((DATE_STEP, ConfirmationReason.SAME_SECOND), (DATE_STEP + timedelta(microseconds=1), None)):
        event = at(0, name="b")
        event = replace(event, version=replace(event.version, event_at=end - age))
        assert needs_confirmation(reading, event) is left


@pytest.mark.parametrize(
    ("current", "listed", "finding"),
    [
        (None, at(1), Finding.MISSING),
        (at(1, deleted=True), at(5), None),
        (gone(1, by_read=True), at(5), None),
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
    kept, found = compare_listed(current, listed)
    assert found is finding
    newer = current is None or (finding and listed.version.updated_at > current.version.updated_at)
    assert kept == (listed if newer else current)


def with_reason(name: str) -> State:
    """As `at(1)`, with a field that the API never shows."""
    return replace(at(1), content={"name": name, "reason": "expired"})


def test_fields_that_the_api_never_shows_are_kept() -> None:
    assert fill_omitted(None, at(2)) == at(2)
    assert fill_omitted(with_reason("a"), at(2, name="b")) == replace(at(2), content={"name": "b", "reason": "expired"})
    assert compare_listed(with_reason("a"), at(2)) == (fill_omitted(with_reason("a"), at(2)), Finding.EQUAL)
    assert confirm(with_reason("a"), at(2)) == (
        replace(at(2), content={"name": "a", "reason": "expired"}),
        Finding.EQUAL,
    )


def keyed(state: State, key: str | None = "k", version: Version | None = None) -> State:
    """The state, of a payload that has the column `key`, or has it from the payload of `version`."""
    return replace(state, content={**state.content, "key": key}, versions={"key": version or state.version})


def unkeyed(state: State) -> State:
    """The state, of a payload without the column `key`."""
    return replace(state, content={**state.content, "key": None})


@pytest.mark.parametrize(
    ("current", "incoming", "kept", "outcome"),
    [
        (keyed(at(1)), unkeyed(at(2, 0, "e2")), keyed(at(2, 0, "e2"), "k", at(1).version), Outcome.UNCHANGED),
        (unkeyed(at(2, 0, "e2")), keyed(at(1)), keyed(at(2, 0, "e2"), "k", at(1).version), Outcome.APPLIED),
        (unkeyed(at(2, 0, "e2")), keyed(at(1), None), keyed(at(2, 0, "e2"), None, at(1).version), Outcome.STALE),
        (keyed(at(1)), keyed(at(2, 0, "e2"), None), keyed(at(2, 0, "e2"), None), Outcome.APPLIED),
        (keyed(at(1)), unkeyed(gone(0)), keyed(gone(0), "k", at(1).version), Outcome.APPLIED),
        (unkeyed(gone(0)), keyed(at(1)), keyed(gone(0), "k", at(1).version), Outcome.APPLIED),
        (keyed(gone(1, erased=True), None), keyed(at(2)), keyed(gone(1, erased=True), None), Outcome.TOMBSTONED),
        (unkeyed(gone(1, erased=True)), keyed(at(2)), unkeyed(gone(1, erased=True)), Outcome.TOMBSTONED),
    ],
)
def test_a_column_that_a_payload_omits_keeps_its_value_and_version(
    current: State, incoming: State, kept: State, outcome: Outcome
) -> None:
    assert decide(current, incoming) == (kept, outcome)


def test_a_stale_state_that_adds_nothing_is_not_written() -> None:
    for current in (keyed(at(2)), unkeyed(at(2)), keyed(gone(2))):
        assert decide(current, unkeyed(at(1, 0, "e0")))[0] is current


@pytest.mark.parametrize(
    ("current", "incoming", "reason"),
    [
        (keyed(at(1)), unkeyed(at(1, 0, "e2")), None),  # the same, as far as the payload says
        (keyed(at(1)), keyed(at(1, 0, "e2"), "l"), ConfirmationReason.TIE),
        (keyed(at(2, 0, "e2"), "k", at(1).version), keyed(at(1, 0, "e3"), "l"), ConfirmationReason.TIE),
        (keyed(at(0, 9, "e2"), "k", read_at(5).version), keyed(at(0, 5), "l"), ConfirmationReason.SAME_SECOND),
        (keyed(at(0, 9, "e2"), "k", read_at(5).version), keyed(at(0, 4), "l"), None),
        (unkeyed(gone(5, by_read=True)), keyed(at(1)), ConfirmationReason.UNDER_TOMBSTONE),
        (unkeyed(read_at(5)), keyed(at(0, 5)), ConfirmationReason.SAME_SECOND),  # although the event is applied
    ],
)
def test_an_event_needs_confirmation_of_a_column_with_its_own_version(
    current: State, incoming: State, reason: ConfirmationReason | None
) -> None:
    assert needs_confirmation(current, incoming) is reason


@pytest.mark.parametrize(
    ("current", "listed", "kept", "finding"),
    [
        # Nothing had the column: it is filled, whichever is newer, and keeps the version of the listing.
        (unkeyed(at(1)), keyed(at(1, 9, "")), keyed(at(1), "k", at(1, 9, "").version), Finding.EQUAL),
        (unkeyed(at(2)), keyed(at(1, 9, "")), keyed(at(2), "k", at(1, 9, "").version), Finding.EQUAL),
        (unkeyed(at(1)), keyed(at(1, 9, ""), None), keyed(at(1), None, at(1, 9, "").version), Finding.EQUAL),
        (unkeyed(at(1)), keyed(at(1, 9, "", name="b")), unkeyed(at(1)), None),
        # The listing omits it.
        (keyed(at(1)), unkeyed(at(1, 9, "")), keyed(at(1)), Finding.EQUAL),
        (keyed(at(1)), unkeyed(at(2, 9, "")), keyed(at(2, 9, ""), "k", at(1).version), Finding.EQUAL),
        (
            keyed(at(1)),
            unkeyed(at(2, 9, "", name="b")),
            keyed(at(2, 9, "", name="b"), "k", at(1).version),
            Finding.STALE,
        ),
        # Both have it.
        (keyed(at(1)), keyed(at(1, 9, ""), "l"), keyed(at(1)), None),
        (keyed(at(1)), keyed(at(2, 9, ""), "l"), keyed(at(2, 9, ""), "l"), Finding.STALE),
        (keyed(at(1), "k", at(3).version), keyed(at(2, 9, ""), "l"), keyed(at(1), "k", at(3).version), None),
        (unkeyed(gone(1)), keyed(at(2, 9, "")), unkeyed(gone(1)), None),
    ],
)
def test_a_listing_fills_columns_that_no_payload_had(
    current: State, listed: State, kept: State, finding: Finding | None
) -> None:
    assert compare_listed(current, listed) == (kept, finding)


@pytest.mark.parametrize(
    ("current", "read", "kept", "finding"),
    [
        (keyed(at(9)), unkeyed(at(5, 9, "")), keyed(at(5, 9, ""), "k", at(9).version), Finding.EQUAL),
        (keyed(at(9)), keyed(at(5, 9, ""), None), keyed(at(5, 9, ""), None), Finding.DIFFERENT),
        (unkeyed(at(9)), keyed(at(5, 9, "")), keyed(at(5, 9, "")), Finding.DIFFERENT),
        (
            keyed(gone(9, by_read=True)),
            unkeyed(at(5, 9, "")),
            keyed(at(5, 9, ""), "k", at(9).version),
            Finding.MISSING,
        ),
    ],
)
def test_a_confirmed_read_that_omits_a_column_leaves_it(
    current: State, read: State, kept: State, finding: Finding
) -> None:
    assert confirm(current, read) == (kept, finding)


@pytest.mark.parametrize(
    ("current", "read", "kept", "finding"),
    [
        (None, None, None, Finding.EQUAL),
        (gone(1), None, gone(1), Finding.EQUAL),
        (gone(1, by_read=True), None, gone(1, by_read=True), Finding.EQUAL),
        (at(1), None, gone(1, by_read=True), Finding.EXTRA),
        (None, at(1), at(1), Finding.MISSING),
        (gone(1), at(5), gone(1), Finding.ANOMALY),
        (gone(9, by_read=True), at(5), at(5), Finding.MISSING),
        (at(9), at(5), at(5), Finding.EQUAL),
        (at(9), at(5, name="b"), at(5, name="b"), Finding.DIFFERENT),
    ],
)
def test_a_confirmed_read_outranks_versions_and_a_resyncs_tombstone_but_no_delete_event(
    current: State | None, read: State | None, kept: State | None, finding: Finding
) -> None:
    assert confirm(current, read) == (kept, finding)


def test_a_confirmed_read_revives_objects_that_can_be_recreated() -> None:
    assert confirm(gone(1), at(5), delete_is_final=False) == (at(5), Finding.MISSING)


@pytest.mark.parametrize(("deleted", "state"), [(True, "deleted"), (False, "active")])
def test_content_is_shown_with_its_state_and_times_as_text(deleted: bool, state: str) -> None:
    found = recorded_content({"name": "a", "created_at": NOON, "reason": None}, deleted=deleted)
    assert found == {"state": state, "name": "a", "created_at": "2025-07-01T12:00:00+00:00", "reason": None}
