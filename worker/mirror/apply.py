"""Snapshots into the mirror: lock the rows, fold, save, note the changes. One caller's transaction, any snapshots."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, select

from models.access import normalize_address
from models.bulk import insert_new, insert_rows, is_any_of, update_rows
from models.database import CHANGES_LOCK, advisory_lock
from models.tables import CONTENT, TABLES, Change, Kind, UserAddress
from models.types import db_now
from worker.decision.decide import ConfirmationReason, Outcome, State, Version, decide, needs_confirmation, shown
from worker.decision.payload import Snapshot
from worker.mirror.auto_join import auto_join_changes


class Arrival(NamedTuple):
    """A snapshot and why it is here: `cause` is `event`, `resync`, `operator` or `settings`; `cause_id` says which."""

    snapshot: Snapshot
    cause: str
    cause_id: str


class Decision(NamedTuple):
    """What became of an arrival, and the event id of the version that the row carried against it.

    `doubt`: why only a confirmed read can tell, if so.
    """

    outcome: Outcome
    against: str | None
    needs_confirmation: ConfirmationReason | None


def apply(tx: Connection, arrivals: Sequence[Arrival]) -> tuple[list[Decision], list[dict[str, Any]]]:
    """Decide each of `arrivals` in turn and write the mirror; return the decisions in the same order, and the changes.

    Locks rows kind by kind, sorted by id, so that two callers wait for each other in one order only. The caller hands
    the changes to `note_changes` as its last step and commits.
    """
    decisions: dict[int, Decision] = {}
    changes: list[dict[str, Any]] = []
    for kind in Kind:
        mine = [(place, arrival) for place, arrival in enumerate(arrivals) if arrival.snapshot.kind is kind]
        if not mine:
            continue
        stored = lock_rows(tx, kind, sorted({arrival.snapshot.id for _, arrival in mine}))
        kept: dict[str, State] = {}
        passed: list[tuple[str, State]] = []
        for place, arrival in mine:
            id = arrival.snapshot.id
            current = kept.get(id, stored[id])
            state, outcome = decide(current, arrival.snapshot.state, terminal=kind is not Kind.ROLE)
            against = current.version.event_id if current else None
            doubtful = needs_confirmation(current, arrival.snapshot.state, outcome)
            decisions[place] = Decision(outcome, against, doubtful)
            if not state.erased:
                passed.append((id, arrival.snapshot.state))
            if state is not current or doubtful:  # the latter too is a new revision: a read under way came before it
                kept[id] = state
            if outcome is Outcome.APPLIED:
                changes.append(change(kind, id, current, state, arrival.cause, arrival.cause_id))
        save_rows(tx, kind, kept, passed)
    return [decisions[place] for place in range(len(arrivals))], changes


def note_changes(tx: Connection, changes: Sequence[dict[str, Any]]) -> None:
    """Write rows of `changes`, and those of what they mean for auto-join. Must be the last step before commit.

    Their ids are drawn under one lock that is held to the commit, so that whoever has seen n never later finds a
    smaller one: followers miss none (docs/guarantees.md, Order and equality).
    """
    if changes:
        advisory_lock(tx, CHANGES_LOCK)
        insert_rows(tx, Change, [*changes, *auto_join_changes(tx, changes)])


def show(kind: Kind, state: State) -> dict[str, Any]:
    """Return `state` as `changes` shows it: every column of its kind, and `state`; times as ISO 8601 text in UTC.

    A user has `erased` too.
    """
    content = {name: state.content.get(name) for name in CONTENT[kind]}
    return shown(content, deleted=state.deleted) | ({"erased": state.erased} if kind is Kind.USER else {})


def change(kind: Kind, id: str, before: State | None, after: State, cause: str, cause_id: str) -> dict[str, Any]:
    """Return a row for `note_changes`."""
    return {
        "kind": kind.value,
        "object_id": id,
        "organization_id": organization_of(kind, id, after),
        "before": None if before is None else show(kind, before),
        "after": show(kind, after),
        "cause": cause,
        "cause_id": cause_id,
    }


def organization_of(kind: Kind, id: str, state: State) -> str | None:
    """Return the workspace an object belongs to, if any."""
    return id if kind is Kind.ORGANIZATION else state.content.get("organization_id")


def lock_rows(tx: Connection, kind: Kind, ids: Sequence[str]) -> dict[str, State | None]:
    """Lock the rows of `ids` (sorted) and return their states, None for an id never seen.

    Keys never seen are inserted first, so that they can be locked; the caller gives each a state before it commits.
    """
    table = TABLES[kind].__table__
    insert_new(tx, TABLES[kind], [{"id": id} for id in ids])
    found = tx.execute(select(table).where(is_any_of(tx, table.c.id, ids)).order_by(table.c.id).with_for_update()).all()
    return {row.id: _state(kind, row) for row in found}


def stored_rows(tx: Connection, kind: Kind, ids: Sequence[str]) -> dict[str, State]:
    """Return the states of those of `ids` that were ever seen, without locking them."""
    table = TABLES[kind].__table__
    rows = tx.execute(select(table).where(is_any_of(tx, table.c.id, ids))).all()
    found = ((row.id, _state(kind, row)) for row in rows)
    return {id: state for id, state in found if state is not None}


def _state(kind: Kind, row: Any) -> State | None:
    if row.revision == 0:
        return None
    columns = row._mapping  # noqa: SLF001 - SQLAlchemy's public name for it
    return State(
        Version(row.updated_at, row.event_at, row.event_id),
        deleted=row.deleted_by is not None,
        content={name: columns[name] for name in CONTENT[kind]},
        by_resync=row.deleted_by == "resync",
        erased=row.erased,
    )


def save_rows(
    tx: Connection, kind: Kind, states: Mapping[str, State], passed: Sequence[tuple[str, State]] = ()
) -> None:
    """Write `states` over their locked rows, one revision higher.

    Of users the addresses are noted too, also those of the states in `passed`, which are not written.
    """
    rows = [_columns(kind, id, state) for id, state in states.items()]
    update_rows(tx, TABLES[kind], rows, revision=TABLES[kind].revision + 1, touched_at=db_now())
    if kind is Kind.USER:
        _note_addresses(tx, [*states.items(), *passed])


def _note_addresses(tx: Connection, users: Iterable[tuple[str, State]]) -> None:
    """Note the addresses of users; those that they had before stay."""
    found = {(id, address.hash) for id, state in users if (address := normalize_address(state.content.get("email")))}
    insert_new(tx, UserAddress, [{"user_id": id, "email_hash": digest} for id, digest in sorted(found)])


def _columns(kind: Kind, id: str, state: State) -> dict[str, Any]:
    return {
        "id": id,
        "updated_at": state.version.updated_at,
        "event_at": state.version.event_at,
        "event_id": state.version.event_id,
        "deleted_by": ("resync" if state.by_resync else "event") if state.deleted else None,
        "erased": state.erased,
        # What the API never tells (why a domain failed) is unknown for an object first seen there.
        **{name: state.content.get(name) for name in CONTENT[kind]},
        **(_derived(state) if kind is Kind.USER else {}),
    }


def _derived(state: State) -> dict[str, Any]:
    address = normalize_address(state.content.get("email"))
    return {
        "email_normalized": address.normalized if address else None,
        "email_domain": address.domain if address else None,
    }
