"""Notifications about conditions."""

import sqlalchemy as sa
from alembic import op

revision = "0030"
down_revision = "0029"
branch_labels = None
depends_on = None

TIME = sa.Text().with_variant(sa.TIMESTAMP(timezone=True), "postgresql")
NOW = {"sqlite": "(strftime('%Y-%m-%dT%H:%M:%f000+00:00', 'now'))", "postgresql": "now()"}


def upgrade() -> None:
    now = sa.text(NOW[op.get_context().dialect.name])
    op.create_table(
        "notify_targets",
        sa.Column("name", sa.Text(), primary_key=True),
        sa.Column("leased_until", TIME),
        sa.Column("fence", sa.Integer(), server_default="0", nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("due_at", TIME, server_default=now, nullable=False),
        sa.Column("error", sa.Text()),
    )
    op.create_table(
        "notices",
        sa.Column("target", sa.Text(), primary_key=True),
        sa.Column("name", sa.Text(), primary_key=True),
        sa.Column("subject", sa.Text(), primary_key=True),
        sa.Column("severity", sa.Text(), nullable=False),
        sa.Column("since", TIME, nullable=False),
        sa.Column("attempted", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("notified_at", TIME),
        sa.Column("gone_since", TIME),
    )
