"""What the inbox is divided by, among drains at work at the same time."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("events", sa.Column("partition_key", sa.SmallInteger(), server_default="0", nullable=False))


def downgrade() -> None:
    op.drop_column("events", "partition_key")
