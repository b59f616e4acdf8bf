"""Certificates of SSO connections are mirrored. Event types that a release adds are read from the events API."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None

JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
TIME = sa.Text().with_variant(sa.TIMESTAMP(timezone=True), "postgresql")


def upgrade() -> None:
    op.create_table(
        "saml_certificates",
        sa.Column("connection_id", sa.Text(), index=True),
        sa.Column("organization_id", sa.Text()),
        sa.Column("certificate_type", sa.Text()),
        sa.Column("expires_at", TIME, index=True),
        sa.Column("id", sa.Text(), primary_key=True),
        sa.Column("created_at", TIME),
        sa.Column("updated_at", TIME),
        sa.Column("event_at", TIME),
        sa.Column("event_id", sa.Text()),
        sa.Column("deleted_by", sa.Text()),
        sa.Column("revision", sa.Integer(), server_default="0", nullable=False),
        sa.Column("touched_at", TIME),
        sa.Column("erased", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("column_versions", JSON),
    )
    op.add_column("mirror", sa.Column("new_types", JSON))
