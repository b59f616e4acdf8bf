"""The workspaces that failures are about."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Label, Select, SQLColumnExpression, func, select

from models.bulk import is_any_of
from models.rows import all_rows
from models.types import Record
from worker.kinds.organization import Organization

MOST = 3
"""Workspaces that are named for each group of failures."""
NO_WORKSPACE: Record = {"affected": 0, "workspaces": []}
"""The value for a group that `affected_workspaces` does not return."""


def affected_workspaces(
    tx: Connection,
    failures: Select[*tuple[Any, ...]],
    group: Sequence[SQLColumnExpression[Any]],
    organization_id: SQLColumnExpression[Any],
    name: str,
) -> dict[tuple[Any, ...], Record]:
    """Return, by the values of the columns `group`, the workspaces that a query of failures is about.

    A value has `affected`, the number of workspaces, and `workspaces`, the `MOST` with the most failures: id, name and,
    under `name`, their number. Groups without a workspace are missing; for them, use `NO_WORKSPACE`.
    """
    number = func.count()
    # No order among equal numbers: to compare the ids would take as long as all the rest.
    place = func.row_number().over(partition_by=group, order_by=number.desc())
    keys: list[Label[Any]] = [column.label(f"key_{n}") for n, column in enumerate(group)]
    workspace: Label[Any] = organization_id.label("organization_id")
    columns = (*keys, workspace, number.label("number"), place.label("place"))
    counted = failures.with_only_columns(*columns, maintain_column_froms=True)
    # Not IS NOT NULL, for which SQLite would read all events by the index on the workspace.
    has_workspace = func.coalesce(organization_id, "") != ""
    found = counted.where(has_workspace).group_by(*group, organization_id).subquery().c
    groups = [found[key.name] for key in keys]
    most = [
        func.max(column).filter(found.place == n)
        for n in range(1, MOST + 1)
        for column in (found.organization_id, found.number)
    ]
    rows = tx.execute(select(*groups, func.max(found.place), *most).group_by(*groups)).all()
    size = len(group)
    ids = {id for row in rows for id in row[size + 1 :: 2] if id is not None}
    known = all_rows(tx, select(Organization.id, Organization.name).where(is_any_of(tx, Organization.id, sorted(ids))))
    names = {row["id"]: row["name"] for row in known}
    return {
        tuple(row[:size]): {
            "affected": row[size],
            "workspaces": [
                {"organization_id": id, "name": names.get(id), name: each}
                for id, each in zip(row[size + 1 :: 2], row[size + 2 :: 2], strict=True)
                if id is not None
            ],
        }
        for row in rows
    }
