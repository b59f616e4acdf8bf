"""Which event asks for a read, and how often a listing failed."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("reads", sa.Column("event_id", sa.Text(), nullable=True))
    op.add_column("listings", sa.Column("attempts", sa.Integer(), server_default="0", nullable=False))


def downgrade() -> None:
    op.drop_column("listings", "attempts")
    op.drop_column("reads", "event_id")
