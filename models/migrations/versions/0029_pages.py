"""`models.migrate` creates the indexes `ix_users_by_address` and `ix_events_late_times`, which replaces another."""

from alembic import op

revision = "0029"
down_revision = "0028"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_index("ix_events_late", "events")
