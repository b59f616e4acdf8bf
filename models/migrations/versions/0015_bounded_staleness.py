"""How far the events API was tailed, and the access that failed events may have changed."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

TIME = sa.Text().with_variant(sa.TIMESTAMP(timezone=True), "postgresql")
NOW = {"sqlite": "(strftime('%Y-%m-%dT%H:%M:%f000+00:00', 'now'))", "postgresql": "now()"}
# Before this release nothing recorded what a failed event may have changed. Until the next full resync, everything.
FAILED = """
INSERT INTO failed_effects (organization_id, user_id, event_id)
SELECT '', '', id FROM events WHERE (status = 'failed' OR status = 'pending' AND attempts > 0)
AND (processed_at IS NULL OR NOT EXISTS (
    SELECT 1 FROM runs WHERE runs.task = 'resync' AND runs.status = 'done' AND runs.organization_id IS NULL
    AND NOT runs.dry_run AND runs.approves IS NULL AND runs.created_at > events.processed_at AND runs.total IS NULL
    AND NOT EXISTS (SELECT 1 FROM drift WHERE drift.run_id = runs.id AND drift.finding = 'invalid')))
"""


def upgrade() -> None:
    now = sa.text(NOW[op.get_context().dialect.name])
    op.create_table(
        "tail",
        sa.Column("id", sa.Text(), primary_key=True),
        sa.Column("leased_until", TIME),
        sa.Column("fence", sa.Integer(), server_default="0", nullable=False),
        sa.Column("hold_back_seconds", sa.Double(), server_default="15", nullable=False),
        sa.Column("tail_seconds", sa.Double(), server_default="5", nullable=False),
        sa.Column("interval_seconds", sa.Double(), server_default="5", nullable=False),
        sa.Column("cursor", sa.Text()),
        sa.Column("read_to", TIME),
        sa.Column("read_at", TIME),
        sa.Column("complete_to", TIME),
        sa.Column("complete_at", TIME),
        sa.Column("late_events", sa.Integer(), server_default="0", nullable=False),
        sa.Column("error", sa.Text()),
    )
    op.execute("INSERT INTO tail (id) VALUES ('events')")
    op.create_table(
        "failed_effects",
        sa.Column("organization_id", sa.Text(), primary_key=True),
        sa.Column("user_id", sa.Text(), primary_key=True),
        sa.Column("event_id", sa.Text(), primary_key=True),
        sa.Column("kind", sa.Text()),
        sa.Column("object_id", sa.Text()),
        sa.Column("since", TIME, server_default=now, nullable=False),
    )
    op.create_index("ix_failed_effects_event_id", "failed_effects", ["event_id"])
    op.create_index("ix_failed_effects_object", "failed_effects", ["kind", "object_id"])
    op.execute(FAILED)
