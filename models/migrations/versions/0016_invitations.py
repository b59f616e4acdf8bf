"""Invitations are mirrored, with hashes of their addresses, which block auto-join; operators can unblock them."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

TIME = sa.Text().with_variant(sa.TIMESTAMP(timezone=True), "postgresql")
NOW = {"sqlite": "(strftime('%Y-%m-%dT%H:%M:%f000+00:00', 'now'))", "postgresql": "now()"}


def upgrade() -> None:
    op.create_table(
        "invitations",
        sa.Column("organization_id", sa.Text(), index=True),
        sa.Column("email", sa.Text()),
        sa.Column("status", sa.Text()),
        sa.Column("role_slug", sa.Text()),
        sa.Column("inviter_user_id", sa.Text()),
        sa.Column("accepted_user_id", sa.Text(), index=True),
        sa.Column("expires_at", TIME),
        sa.Column("accepted_at", TIME),
        sa.Column("revoked_at", TIME),
        sa.Column("email_normalized", sa.Text()),
        sa.Column("id", sa.Text(), primary_key=True),
        sa.Column("created_at", TIME),
        sa.Column("updated_at", TIME),
        sa.Column("event_at", TIME),
        sa.Column("event_id", sa.Text()),
        sa.Column("deleted_by", sa.Text()),
        sa.Column("revision", sa.Integer(), server_default="0", nullable=False),
        sa.Column("touched_at", TIME),
        sa.Column("erased", sa.Boolean(), server_default=sa.false(), nullable=False),
    )
    op.create_table(
        "invited_addresses",
        sa.Column("invitation_id", sa.Text(), nullable=False, primary_key=True),
        sa.Column("email_hash", sa.Text(), nullable=False, primary_key=True, index=True),
    )
    op.create_table(
        "unblocked_invitations",
        sa.Column("invitation_id", sa.Text(), nullable=False, primary_key=True),
        sa.Column("status", sa.Text(), nullable=False, primary_key=True),
        sa.Column("who", sa.Text(), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("at", TIME, server_default=sa.text(NOW[op.get_context().dialect.name]), nullable=False),
    )
