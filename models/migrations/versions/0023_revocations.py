"""Sessions of people who lost access are revoked."""

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None

TIME = sa.Text().with_variant(sa.TIMESTAMP(timezone=True), "postgresql")
NOW = {"sqlite": "(strftime('%Y-%m-%dT%H:%M:%f000+00:00', 'now'))", "postgresql": "now()"}


def upgrade() -> None:
    now = sa.text(NOW[op.get_context().dialect.name])
    pending = sa.text("state = 'pending'")
    op.add_column("mirror", sa.Column("revokes_sessions_since", TIME))
    op.create_table(
        "revocations",
        sa.Column("organization_id", sa.Text(), primary_key=True),
        sa.Column("user_id", sa.Text(), primary_key=True, index=True),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("object_id", sa.Text(), nullable=False),
        sa.Column("event_id", sa.Text()),
        sa.Column("since", TIME, nullable=False),
        sa.Column("state", sa.Text(), server_default="pending", nullable=False),
        sa.Column("reason", sa.Text()),
        sa.Column("created_at", TIME, server_default=now, nullable=False),
        sa.Column("due_at", TIME, server_default=now, nullable=False),
        sa.Column("settled_at", TIME),
        sa.Column("claim", sa.Integer(), server_default="0", nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("sessions", sa.Integer(), server_default="0", nullable=False),
        sa.Column("error", sa.Text()),
    )
    op.create_index("ix_revocations_state", "revocations", ["state"])
    op.create_index("ix_revocations_pending", "revocations", ["due_at"], sqlite_where=pending, postgresql_where=pending)
