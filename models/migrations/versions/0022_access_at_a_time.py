"""Access at a time: an index to find the last change before it, and the time before which changes are deleted."""

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None

TIME = sa.Text().with_variant(sa.TIMESTAMP(timezone=True), "postgresql")
NOW = {"sqlite": "strftime('%Y-%m-%dT%H:%M:%f000+00:00', 'now')", "postgresql": "now()"}
# The time of the last deleted change is not known any more. That of the first kept one is later.
DROPPED_AT = """
UPDATE mirror
SET changes_dropped_at = coalesce((SELECT min(at) FROM changes WHERE id > mirror.changes_dropped_to), {now})
WHERE changes_dropped_to > 0
"""


def upgrade() -> None:
    op.create_index("ix_changes_at_id", "changes", ["at", "id"])
    op.add_column("mirror", sa.Column("changes_dropped_at", TIME))
    op.get_bind().exec_driver_sql(DROPPED_AT.format(now=NOW[op.get_bind().dialect.name]))
