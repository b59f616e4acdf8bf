"""The drift report of a run: each difference that it found, and what it did about it."""

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import Connection, select, update

from models.bulk import insert_new
from models.outcomes import Finding
from models.tables import Drift, DriftAction
from models.types import JsonObject
from worker.decision.decide import State
from worker.kinds import Kind
from worker.mirror.apply import recorded_state


class Difference(NamedTuple):
    """A row of the report."""

    kind: str
    object_id: str
    organization_id: str | None
    finding: Finding
    fields: JsonObject | None
    """Field → `[here, WorkOS]`."""
    action: DriftAction


def difference(
    kind: Kind, id: str, finding: Finding, here: State | None, there: State | None, action: DriftAction
) -> Difference:
    """Return the difference between the states of an object here and in WorkOS. None: it does not exist."""
    ours, theirs = (recorded_state(kind, here) if here else {}), (recorded_state(kind, there) if there else {})
    hidden = kind.personal if here and here.erased else ()  # WorkOS may still show a person who is erased here
    names = [name for name in ours | theirs if ours.get(name) != theirs.get(name) and name not in hidden]
    fields = {name: [ours.get(name), theirs.get(name)] for name in names} if here and there else None
    organization_id = next((kind.organization_of(id, state.content) for state in (there, here) if state), None)
    return Difference(kind.name, id, organization_id, finding, fields, action)


def invalid(kind: Kind, id: str, problem: str) -> Difference:
    """Return the difference for an object of WorkOS that is invalid or cannot be read: the field, or the error."""
    return Difference(kind.name, id, None, Finding.INVALID, {problem: None}, DriftAction.REPORTED)


def add_problem(tx: Connection, run_id: str, kind: Kind, id: str, problem: str) -> None:
    """Add a problem to what the report of a run says about an object, which may differ too."""
    row = (Drift.run_id == run_id, Drift.kind == kind.name, Drift.object_id == id)
    known = tx.execute(select(Drift.fields).where(*row)).one_or_none()
    if known is None:
        record(tx, run_id, [invalid(kind, id, problem)])
    else:
        tx.execute(update(Drift).where(*row).values(fields={**(known.fields or {}), problem: None}))


def record(tx: Connection, run_id: str, differences: Sequence[Difference]) -> None:
    """Add differences to the report of a run. The first difference of an object stays."""
    insert_new(tx, Drift, [{"run_id": run_id, **difference._asdict()} for difference in differences])
