"""Indexes: the door writes no entries that say nothing, and pages and metrics count without reading whole tables."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

ONLY_WHERE_SET = {
    "ix_events_replay_id": ["replay_id"],
    "ix_events_object_id": ["object_id"],
    "ix_events_organization_id": ["organization_id", "received_at"],
}
COUNTED = {
    "ix_auto_joins_state": ("auto_joins", "state", None),
    "ix_auto_joins_invalid": ("auto_joins", "state", "domain IS NULL"),
    "ix_joins_state": ("joins", "state", None),
    "ix_memberships_workos_role": ("memberships", "workos_role", "deleted_by IS NULL"),
}


def upgrade() -> None:
    for name, columns in ONLY_WHERE_SET.items():
        op.drop_index(name, table_name="events")
        _create(name, "events", columns, f"{columns[0]} IS NOT NULL")
    for name, (table, column, where) in COUNTED.items():
        _create(name, table, [column], where)


def downgrade() -> None:
    for name, (table, _, _) in COUNTED.items():
        op.drop_index(name, table_name=table)
    for name, columns in ONLY_WHERE_SET.items():
        op.drop_index(name, table_name="events")
        op.create_index(name, "events", columns)


def _create(name: str, table: str, columns: list[str], where: str | None) -> None:
    given = sa.text(where) if where else None
    op.create_index(name, table, columns, postgresql_where=given, sqlite_where=given)
