"""WorkOS's time of each change, and versions that arrived late. Totals that a killed process does not lower."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None

JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
TIME = sa.Text().with_variant(sa.TIMESTAMP(timezone=True), "postgresql")
NOW = {"sqlite": "(strftime('%Y-%m-%dT%H:%M:%f000+00:00', 'now'))", "postgresql": "now()"}

# Late versions from before this revision are not known.
LATE_SINCE = "UPDATE mirror SET late_versions_since = {now} WHERE backfill_from IS NOT NULL"


def upgrade() -> None:
    now = NOW[op.get_context().dialect.name]
    # In the order in which resyncs and drains, which run meanwhile, lock these tables. Otherwise one of them, or the
    # migration, ends in a deadlock.
    op.add_column("runs", sa.Column("workos_from", TIME))
    op.add_column("mirror", sa.Column("verified_at", TIME))
    op.add_column("mirror", sa.Column("verified_rows_to", TIME))
    op.add_column("mirror", sa.Column("late_versions_since", TIME))
    op.add_column("changes", sa.Column("workos_at", TIME))
    op.add_column("changes", sa.Column("workos_after", TIME))
    op.execute(LATE_SINCE.format(now=now))
    op.create_table(
        "late_versions",
        sa.Column("event_id", sa.Text(), primary_key=True),
        sa.Column("at", TIME, server_default=sa.text(now), nullable=False, index=True),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("object_id", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text()),
        sa.Column("content", JSON, nullable=False),
        sa.Column("workos_at", TIME, nullable=False),
        sa.Column("workos_until", TIME),
        sa.Column("actor_id", sa.Text()),
        sa.Column("actor_source", sa.Text()),
    )
    op.create_index("ix_late_versions_object_id_workos_at", "late_versions", ["object_id", "workos_at"])
    op.create_table(
        "totals",
        sa.Column("name", sa.Text(), primary_key=True),
        sa.Column("number", sa.BigInteger(), nullable=False),
    )
