"""Roles have a resource type: only roles of the type `organization` can be a member's role."""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("roles", sa.Column("resource_type", sa.Text()))
