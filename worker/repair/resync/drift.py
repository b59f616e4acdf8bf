"""Rows of a run's report: what it found different, and what was done about it."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection

from models.bulk import insert_new
from models.outcomes import Finding
from models.tables import Drift, DriftAction
from worker.decision.decide import State
from worker.kinds import Kind
from worker.kinds.user import PERSONAL
from worker.mirror.apply import show

Row = dict[str, Any]


def difference(
    kind: Kind, id: str, finding: Finding, here: State | None, there: State | None, action: DriftAction
) -> Row:
    """Return what differs, field by field, `[here, WorkOS]`, and what was done."""
    ours, theirs = (show(kind, here) if here else {}), (show(kind, there) if there else {})
    left_out = PERSONAL if here and here.erased else ()  # WorkOS may still show someone who is erased here
    fields = {f: [ours.get(f), theirs.get(f)] for f in ours | theirs if ours.get(f) != theirs.get(f)}
    fields = {field: values for field, values in fields.items() if field not in left_out}
    organization_id = next((kind.organization_of(id, state.content) for state in (there, here) if state), None)
    row = {"kind": kind.name, "object_id": id, "organization_id": organization_id}
    return {**row, "finding": finding, "fields": fields if here and there else None, "action": action}


def invalid(kind: Kind, id: str, field: str) -> Row:
    """Return that an object which WorkOS shows cannot be used, or not be read, and why."""
    row = {"kind": kind.name, "object_id": id, "organization_id": None, "finding": Finding.INVALID}
    return {**row, "fields": {field: None}, "action": DriftAction.REPORTED}


def record(tx: Connection, run_id: str, rows: Sequence[Row]) -> None:
    """Write rows to the report of a run; of an object that stands there already, the first stays."""
    insert_new(tx, Drift, [{"run_id": run_id, **row} for row in rows])
