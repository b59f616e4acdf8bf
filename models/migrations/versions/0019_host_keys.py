"""The product's own keys and data in WorkOS's objects. Payloads may omit them, so each has a version of its own.

The next full resync fills the new columns, and `models.migrate` creates their indexes.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
MIRRORED = (
    *("organizations", "users", "memberships", "domains"),
    *("connections", "roles", "permissions", "invitations"),
)


def upgrade() -> None:
    for table in MIRRORED:
        op.add_column(table, sa.Column("column_versions", JSON))
    for table, column, kind in (
        ("organizations", "stripe_customer_id", sa.Text()),
        ("organizations", "metadata", JSON),
        ("users", "external_id", sa.Text()),
        ("users", "metadata", JSON),
        ("memberships", "custom_attributes", JSON),
    ):
        op.add_column(table, sa.Column(column, kind))
