"""Blocks by address: a person who was removed is kept out under another user id or a former address too."""

import hashlib
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

STEP = 5_000
REMOVED = """CASE WHEN m.deleted_by IS NOT NULL THEN 'removed' WHEN m.status = 'inactive' THEN 'deactivated'
                    WHEN m.status = 'pending' THEN 'invited' ELSE 'of no known status' END"""
# A membership keeps its person out unless an operator unblocked it, or the person is active by another one.
COUNTS = """(m.deleted_by IS NOT NULL OR m.status IS NULL OR m.status <> 'active')
          AND NOT EXISTS (SELECT 1 FROM lifted_blocks AS l WHERE l.membership_id = m.id)
          AND NOT EXISTS (
            SELECT 1 FROM memberships AS n
            WHERE n.organization_id = m.organization_id AND n.user_id = m.user_id
              AND n.deleted_by IS NULL AND n.status = 'active')"""
# WorkOS deletes the memberships of a user it deletes: an active one that went after its user was removed by nobody.
WENT_ALONG = """(m.deleted_by = 'event' AND m.status = 'active' AND u.deleted_by = 'event'
            AND (m.event_at > u.event_at OR (m.event_at = u.event_at AND m.event_id > u.event_id)))"""
# `o` are the addresses of the person who was removed, `b` whoever had one of them, `c` all addresses of that one.
OTHERS = """JOIN user_addresses AS b ON b.email_hash = o.email_hash
        JOIN user_addresses AS c ON c.user_id = b.user_id
        JOIN users AS v ON v.id = c.user_id"""
BLOCKS = f"""
        SELECT m.organization_id, m.user_id, u.email_normalized, {REMOVED} AS reason, o.email_hash
        FROM memberships AS m
        LEFT JOIN users AS u ON u.id = m.user_id
        LEFT JOIN user_addresses AS o ON o.user_id = m.user_id
        WHERE {COUNTS} AND (u.deleted_by IS NULL OR NOT {WENT_ALONG})
        UNION ALL
        SELECT m.organization_id, c.user_id, v.email_normalized, {REMOVED} AS reason, c.email_hash
        FROM memberships AS m
        JOIN users AS u ON u.id = m.user_id
        JOIN user_addresses AS o ON o.user_id = m.user_id
        {OTHERS}
        WHERE c.user_id <> m.user_id AND {COUNTS} AND (u.deleted_by IS NULL OR NOT {WENT_ALONG})
        UNION ALL
        SELECT j.organization_id, j.user_id, u.email_normalized, j.reason, o.email_hash
        FROM joins AS j
        LEFT JOIN users AS u ON u.id = j.user_id
        LEFT JOIN user_addresses AS o ON o.user_id = j.user_id
        WHERE j.state IN ('blocked', 'undone')
        UNION ALL
        SELECT j.organization_id, c.user_id, v.email_normalized, j.reason, c.email_hash
        FROM joins AS j
        JOIN user_addresses AS o ON o.user_id = j.user_id
        {OTHERS}
        WHERE c.user_id <> j.user_id AND j.state IN ('blocked', 'undone')
"""  # noqa: S608 - text of this file
BEFORE = f"""
        SELECT m.organization_id, m.user_id, u.email_normalized, {REMOVED} AS reason
        FROM memberships AS m
        LEFT JOIN users AS u ON u.id = m.user_id
        WHERE {COUNTS}
        UNION ALL
        SELECT j.organization_id, j.user_id, u.email_normalized, j.reason
        FROM joins AS j
        LEFT JOIN users AS u ON u.id = j.user_id
        WHERE j.state IN ('blocked', 'undone')
"""  # noqa: S608 - text of this file


def upgrade() -> None:
    op.create_table(
        "user_addresses",
        sa.Column("user_id", sa.Text(), nullable=False, primary_key=True),
        sa.Column("email_hash", sa.Text(), nullable=False, primary_key=True, index=True),
    )
    _fill()
    _replace(BLOCKS)


def downgrade() -> None:
    _replace(BEFORE)
    op.drop_table("user_addresses")


def _replace(query: str) -> None:
    op.execute("DROP VIEW auto_join_blocks")
    op.execute(f"CREATE VIEW auto_join_blocks AS {query}")


def _fill() -> None:
    tx = op.get_bind()
    addresses = sa.table("user_addresses", sa.column("user_id"), sa.column("email_hash"))
    for rows in _pages(tx):
        tx.execute(sa.insert(addresses), [{"user_id": id, "email_hash": _hash(email)} for id, email in rows])


def _pages(tx: sa.Connection) -> Iterator[list[Any]]:
    users = sa.table("users", sa.column("id"), sa.column("email_normalized"))
    page = sa.select(users.c.id, users.c.email_normalized).where(users.c.email_normalized.is_not(None))
    last = ""
    while rows := list(tx.execute(page.where(users.c.id > last).order_by(users.c.id).limit(STEP))):
        yield rows
        last = rows[-1][0]


def _hash(normalized: str) -> str:
    return hashlib.sha256(f"workos-sync:{normalized}".encode()).hexdigest()
