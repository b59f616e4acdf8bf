"""Finds the workspace or person that an operator names."""

from collections.abc import Sequence

from sqlalchemy import Engine, func, or_, select

from models.database import read_transaction
from models.rows import all_rows
from models.types import Record
from worker.errors import AmbiguousNameError, UnknownIdError
from worker.kinds.addresses import has_address
from worker.kinds.organization import Organization
from worker.kinds.user import User

MAX_CANDIDATES = 5
"""Candidates that a message lists."""


def find_organization(engine: Engine, name: str) -> str | None:
    """Return the id of the workspace with this id, external id or name (in any case); None if there is none.

    An id wins. A deleted workspace is found by its id, or if no live one matches.

    Raises:
        AmbiguousNameError: several match. The message lists them.
    """
    named = or_(
        Organization.external_id == name, Organization.name == name, func.lower(Organization.name) == name.lower()
    )
    query = select(Organization.id, Organization.name.label("label"), Organization.deleted_by)
    with read_transaction(engine) as tx:
        by_id = all_rows(tx, query.where(Organization.id == name))
        return _only(name, by_id or all_rows(tx, query.where(named).order_by(Organization.id)))


def find_user(engine: Engine, name: str) -> str | None:
    """Return the id of the person with this id or e-mail address (in any spelling); None if there is none.

    An id wins. A deleted person is found by their id, or if no live one matches.

    Raises:
        AmbiguousNameError: several match. The message lists their ids.
    """
    query = select(User.id, User.deleted_by)
    with read_transaction(engine) as tx:
        by_id = all_rows(tx, query.where(User.id == name))
        return _only(name, by_id or all_rows(tx, query.where(has_address(User, name)).order_by(User.id)))


def organization_id(engine: Engine, name: str, *, unmirrored: bool = False) -> str:
    """Return what `find_organization` returns; raise `UnknownIdError` if it finds none.

    With `unmirrored`, the name is returned if it has the form of an id: events of a workspace that the mirror lacks may
    have failed.
    """
    found = find_organization(engine, name) or (name if unmirrored and name.startswith("org_") else None)
    if found is None:
        raise UnknownIdError(
            f"the mirror has no workspace {name!r}; to find one, run: workos-sync workspaces --name TEXT"
        )
    return found


def user_id(engine: Engine, name: str) -> str:
    """Return what `find_user` returns; raise `UnknownIdError` if it finds none."""
    found = find_user(engine, name)
    if found is None:
        raise UnknownIdError(f"the mirror has no person {name!r}")
    return found


def _only(name: str, found: Sequence[Record]) -> str | None:
    live = [row for row in found if row["deleted_by"] is None] or found
    if len(live) > 1:
        listed = [f"{row['id']} ({row['label']})" if row.get("label") else row["id"] for row in live[:MAX_CANDIDATES]]
        more = ", ..." if len(live) > MAX_CANDIDATES else ""
        raise AmbiguousNameError(f"{name} is ambiguous; use one of these ids: {', '.join(listed)}{more}")
    return live[0]["id"] if live else None
