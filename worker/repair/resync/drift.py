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
    """Field → `[value in the mirror, value in WorkOS]`."""
    action: DriftAction


def difference(
    kind: Kind, id: str, finding: Finding, in_mirror: State | None, in_workos: State | None, action: DriftAction
) -> Difference:
    """Return the difference between the states of an object in the mirror and in WorkOS. None: it does not exist."""
    old = recorded_state(kind, in_mirror) if in_mirror else {}
    new = recorded_state(kind, in_workos) if in_workos else {}
    hidden = kind.personal if in_mirror and in_mirror.erased else ()  # WorkOS may still show an erased person
    names = [name for name in old | new if old.get(name) != new.get(name) and name not in hidden]
    fields = {name: [old.get(name), new.get(name)] for name in names} if in_mirror and in_workos else None
    organization_id = next((kind.organization_of(id, state.content) for state in (in_workos, in_mirror) if state), None)
    return Difference(kind.name, id, organization_id, finding, fields, action)


def invalid(kind: Kind, id: str, problem: str) -> Difference:
    """Return the difference for an object of WorkOS that is invalid or cannot be read: the field, or the error."""
    return Difference(kind.name, id, None, Finding.INVALID, {problem: None}, DriftAction.REPORTED)


def add_problem(tx: Connection, run_id: str, kind: Kind, id: str, problem: str) -> None:
    """Add a problem with an object to the report of a run, which may already have a difference of that object."""
    row = (Drift.run_id == run_id, Drift.kind == kind.name, Drift.object_id == id)
    known = tx.execute(select(Drift.fields).where(*row)).one_or_none()
    if known is None:
        record(tx, run_id, [invalid(kind, id, problem)])
    else:
        tx.execute(update(Drift).where(*row).values(fields={**(known.fields or {}), problem: None}))


def record(tx: Connection, run_id: str, differences: Sequence[Difference]) -> None:
    """Add differences to the report of a run. The first difference of an object stays."""
    insert_new(tx, Drift, [{"run_id": run_id, **difference._asdict()} for difference in differences])
