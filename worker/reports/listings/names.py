"""Names of the objects that rows name by id."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from sqlalchemy import Connection, Engine, select

from models.bulk import is_any_of
from models.database import read_transaction
from models.types import Record
from worker.kinds import KINDS
from worker.kinds.membership import MEMBERSHIP, Membership
from worker.kinds.organization import Organization
from worker.kinds.user import User


def workspace_names(tx: Connection, ids: Iterable[str | None]) -> dict[str, str]:
    """Return the names of workspaces by id. Those without a known name are missing."""
    if not (known := sorted(set(filter(None, ids)))):
        return {}
    named = select(Organization.id, Organization.name).where(is_any_of(tx, Organization.id, known))
    return {id: name for id, name in tx.execute(named) if name}


def named(engine: Engine, rows: Sequence[Record]) -> list[Record]:
    """Return rows as `with_names`, in a transaction of its own."""
    with read_transaction(engine) as tx:
        return with_names(tx, rows)


def with_names(tx: Connection, rows: Sequence[Record]) -> list[Record]:
    """Return rows with `workspace_name`, from `organization_id`, and `label`, from `kind` and `object_id`.

    A label is what people recognize the object by, such as an address; for a membership, that of its person. Both are
    None if not known.
    """
    ids: defaultdict[str | None, set[str | None]] = defaultdict(set)
    for row in rows:
        ids[row.get("kind")].add(row.get("object_id"))
    labels: dict[tuple[object, object], str] = {
        (kind, id): label for kind, of_kind in ids.items() for id, label in _labels(tx, kind, of_kind)
    }
    names = workspace_names(tx, (row.get("organization_id") for row in rows))
    return [
        row
        | {
            "workspace_name": names.get(row.get("organization_id") or ""),
            "label": labels.get((row.get("kind"), row.get("object_id"))),
        }
        for row in rows
    ]


def _labels(tx: Connection, kind_name: str | None, ids: Iterable[str | None]) -> Iterable[tuple[str, str]]:
    """Return id and label of objects of a kind, except those without a label."""
    known = sorted(set(filter(None, ids)))
    kind = KINDS.get(kind_name or "")
    if not known or kind is None:
        return ()
    if kind is MEMBERSHIP:
        of_person = select(Membership.id, User.email).join(User, User.id == Membership.user_id)
        found = tx.execute(of_person.where(is_any_of(tx, Membership.id, known))).all()
    elif kind.label is not None:
        found = tx.execute(select(kind.table.id, kind.label).where(is_any_of(tx, kind.table.id, known))).all()
    else:
        found = []
    return [(id, label) for id, label in found if label]
