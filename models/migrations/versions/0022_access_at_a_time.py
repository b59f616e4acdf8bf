"""Access at a time: the time before which changes are deleted. `models.migrate` creates the index of `changes.at`."""

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
    op.add_column("mirror", sa.Column("changes_dropped_at", TIME))
    op.execute(DROPPED_AT.format(now=NOW[op.get_context().dialect.name]))
