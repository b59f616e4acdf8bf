"""A database knows its environment, and an id by which it claims our keys in Redis."""

import sqlalchemy as sa
from alembic import op

revision = "0027"
down_revision = "0026"
branch_labels = None
depends_on = None

RANDOM = {"sqlite": "lower(hex(randomblob(16)))", "postgresql": "replace(gen_random_uuid()::text, '-', '')"}


def upgrade() -> None:
    op.add_column("mirror", sa.Column("environment_name", sa.Text()))
    op.add_column("mirror", sa.Column("database_id", sa.Text()))
    op.execute(f"UPDATE mirror SET database_id = {RANDOM[op.get_context().dialect.name]}")  # noqa: S608 - a constant
