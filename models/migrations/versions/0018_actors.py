"""Changes record who made them at WorkOS. Rows that exist have no actor, so retention need not look at them."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    for name, kind in (
        ("actor_id", sa.Text()),
        ("actor_name", sa.Text()),
        ("actor_source", sa.Text()),
        ("previous_attributes", JSON),
    ):
        op.add_column("changes", sa.Column(name, kind))
    op.add_column("mirror", sa.Column("actors_blanked_to", sa.BigInteger(), server_default="0", nullable=False))
    op.execute("UPDATE mirror SET actors_blanked_to = COALESCE((SELECT MAX(id) FROM changes), 0)")
