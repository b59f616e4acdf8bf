"""What operators and followers ask: gaps, late webhooks, drift by object, and which changes are no longer kept."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

EVENTS = {"ix_events_gap": "webhook_at IS NULL", "ix_events_late": "webhook_at > api_at"}


def upgrade() -> None:
    for name, where in EVENTS.items():
        op.create_index(name, "events", ["api_at"], postgresql_where=sa.text(where), sqlite_where=sa.text(where))
    op.create_index("ix_drift_object_id", "drift", ["object_id"])
    op.add_column("mirror", sa.Column("changes_dropped_to", sa.BigInteger(), server_default="0", nullable=False))


def downgrade() -> None:
    op.drop_column("mirror", "changes_dropped_to")
    op.drop_index("ix_drift_object_id", table_name="drift")
    for name in EVENTS:
        op.drop_index(name, table_name="events")
