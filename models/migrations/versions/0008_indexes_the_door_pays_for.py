"""Indexes that an event enters only when it is decided: the door no longer writes entries that say nothing."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

INDEXES = {
    "ix_events_replay_id": ["replay_id"],
    "ix_events_object_id": ["object_id"],
    "ix_events_organization_id": ["organization_id", "received_at"],
}


def upgrade() -> None:
    for name, columns in INDEXES.items():
        given = sa.text(f"{columns[0]} IS NOT NULL")
        op.drop_index(name, table_name="events")
        op.create_index(name, "events", columns, postgresql_where=given, sqlite_where=given)


def downgrade() -> None:
    for name, columns in INDEXES.items():
        op.drop_index(name, table_name="events")
        op.create_index(name, "events", columns)
