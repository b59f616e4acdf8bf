"""Failed attempts of events are kept. `models.migrate` creates the indexes of `events` and `drift`."""

import sqlalchemy as sa
from alembic import op

revision = "0026"
down_revision = "0025"
branch_labels = None
depends_on = None

TIME = sa.Text().with_variant(sa.TIMESTAMP(timezone=True), "postgresql")
NOW = {"sqlite": "(strftime('%Y-%m-%dT%H:%M:%f000+00:00', 'now'))", "postgresql": "now()"}


def upgrade() -> None:
    op.create_table(
        "failed_attempts",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("at", TIME, server_default=sa.text(NOW[op.get_context().dialect.name]), nullable=False),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.Text()),
        sa.Column("traceback", sa.Text()),
    )
    op.create_index("ix_failed_attempts_event_id", "failed_attempts", ["event_id", "id"])
    op.add_column("hook_deliveries", sa.Column("fingerprint", sa.Text()))
    op.add_column("hook_deliveries", sa.Column("attempted_at", TIME))
