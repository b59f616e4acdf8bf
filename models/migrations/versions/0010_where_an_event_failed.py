"""Where an event failed, so that what one line does not explain can be found in the code."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("events", sa.Column("traceback", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("events", "traceback")
