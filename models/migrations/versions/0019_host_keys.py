"""The product's own keys and data in WorkOS's objects. Payloads may omit them, so each has a version of its own.

Values that are stored have the version of their row. The next full resync fills the new columns.
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
    for table, column in (("organizations", "external_id"), ("roles", "resource_type")):
        versions = f"'{{\"{column}\": null}}'"
        op.execute(sa.text(f"UPDATE {table} SET column_versions = {versions} WHERE {column} IS NOT NULL"))  # noqa: S608
    for table in ("organizations", "users"):
        op.create_index(f"ix_{table}_external_id", table, ["external_id"], postgresql_using="hash")
