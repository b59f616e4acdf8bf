"""Operators may be known by an identity provider."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0028"
down_revision = "0027"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("operator_sessions", sa.Column("entries", sa.JSON().with_variant(JSONB(), "postgresql")))
