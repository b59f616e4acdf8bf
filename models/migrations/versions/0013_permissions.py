"""Permissions are mirrored, and the mirror notes which kinds of objects a full resync has listed."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

TIME = sa.Text().with_variant(sa.TIMESTAMP(timezone=True), "postgresql")
JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    op.create_table(
        "permissions",
        sa.Column("permission_id", sa.Text()),
        sa.Column("name", sa.Text()),
        sa.Column("description", sa.Text()),
        sa.Column("system", sa.Boolean()),
        sa.Column("resource_type", sa.Text()),
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
    op.add_column("mirror", sa.Column("listed_kinds", JSON))
