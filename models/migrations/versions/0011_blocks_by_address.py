"""Blocks by address: a person who was removed is kept out under another user id or a former address too.

The view `auto_join_blocks` reads the new table once `models.migrate` has updated the views.
"""

import hashlib
from collections.abc import Iterator

import sqlalchemy as sa
from alembic import context, op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

STEP = 5_000


def upgrade() -> None:
    op.create_table(
        "user_addresses",
        sa.Column("user_id", sa.Text(), nullable=False, primary_key=True),
        sa.Column("email_hash", sa.Text(), nullable=False, primary_key=True, index=True),
    )
    if not context.is_offline_mode():  # offline, the database is new
        _fill()


def _fill() -> None:
    tx = op.get_bind()
    addresses = sa.table("user_addresses", sa.column("user_id"), sa.column("email_hash"))
    for rows in _pages(tx):
        tx.execute(sa.insert(addresses), [{"user_id": id, "email_hash": _hash(email)} for id, email in rows])


def _pages(tx: sa.Connection) -> Iterator[list[sa.Row[str, str]]]:
    users = sa.table("users", sa.column("id"), sa.column("email_normalized"))
    page = sa.select(users.c.id, users.c.email_normalized).where(users.c.email_normalized.is_not(None))
    last = ""
    while rows := list(tx.execute(page.where(users.c.id > last).order_by(users.c.id).limit(STEP))):
        yield rows
        last = rows[-1][0]


def _hash(normalized: str) -> str:
    return hashlib.sha256(f"workos-sync:{normalized}".encode()).hexdigest()
