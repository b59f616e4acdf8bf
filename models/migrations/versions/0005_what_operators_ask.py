"""What operators and followers ask: drift by object, people by workspace, and which changes are no longer kept."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_drift_object_id", "drift", ["object_id"])
    op.add_column("mirror", sa.Column("changes_dropped_to", sa.BigInteger(), server_default="0", nullable=False))


def downgrade() -> None:
    op.drop_column("mirror", "changes_dropped_to")
    op.drop_index("ix_drift_object_id", table_name="drift")
