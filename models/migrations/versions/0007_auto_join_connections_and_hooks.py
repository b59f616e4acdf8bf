"""Auto-join with its states, switches and pending joins; sign-in methods; host hooks."""

from collections.abc import Iterator
from typing import Any

import idna
import sqlalchemy as sa
from alembic import op

from models.types import JsonValue, UtcDateTime, db_now

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

STEP = 5_000
COUNTS = "({d}.verification = 'verified' OR {d}.verification = 'legacy_verified' AND w.legacy_verified)"
VIEWS = {
    # A conflict is derived here, not stored, so that no two writers can disagree about it.
    "auto_join_domains": f"""
        SELECT d.normalized AS domain, d.organization_id, COALESCE(s.default_role, 'member') AS default_role,
               MIN(d.created_at) AS since
        FROM domains AS d
        JOIN mirror AS w ON w.auto_join <> 'off'
        JOIN organizations AS o ON o.id = d.organization_id AND o.deleted_by IS NULL
        LEFT JOIN workspace_settings AS s ON s.organization_id = d.organization_id
        WHERE d.deleted_by IS NULL AND {COUNTS.format(d="d")} AND COALESCE(s.auto_join, TRUE)
          AND d.normalized IS NOT NULL
          AND NOT EXISTS (SELECT 1 FROM public_domains AS f WHERE f.domain = d.normalized)
          AND NOT EXISTS (
            SELECT 1 FROM domains AS e
            LEFT JOIN organizations AS p ON p.id = e.organization_id
            WHERE e.normalized = d.normalized AND e.organization_id <> d.organization_id AND p.deleted_by IS NULL
              AND e.deleted_by IS NULL AND {COUNTS.format(d="e")})
        GROUP BY d.normalized, d.organization_id, s.default_role
    """,  # noqa: S608 - text of this file
    # Whoever was removed or deactivated, or is invited, until an operator lifts it; unless active by another one.
    "auto_join_blocks": """
        SELECT m.organization_id, m.user_id, u.email_normalized,
               CASE WHEN m.deleted_by IS NOT NULL THEN 'removed' WHEN m.status = 'inactive' THEN 'deactivated'
                    WHEN m.status = 'pending' THEN 'invited' ELSE 'of no known status' END AS reason
        FROM memberships AS m
        LEFT JOIN users AS u ON u.id = m.user_id
        WHERE (m.deleted_by IS NOT NULL OR m.status IS NULL OR m.status <> 'active')
          AND NOT EXISTS (SELECT 1 FROM lifted_blocks AS l WHERE l.membership_id = m.id)
          AND NOT EXISTS (
            SELECT 1 FROM memberships AS n
            WHERE n.organization_id = m.organization_id AND n.user_id = m.user_id
              AND n.deleted_by IS NULL AND n.status = 'active')
        UNION ALL
        SELECT j.organization_id, j.user_id, u.email_normalized, j.reason
        FROM joins AS j
        LEFT JOIN users AS u ON u.id = j.user_id
        WHERE j.state IN ('blocked', 'undone')
    """,
    "sign_in_methods": """
        SELECT c.organization_id, c.id AS connection_id, c.connection_type, c.name, c.created_at AS since
        FROM connections AS c
        JOIN organizations AS o ON o.id = c.organization_id AND o.deleted_by IS NULL
        WHERE c.deleted_by IS NULL AND c.status = 'active'
    """,
}
BEFORE = """
    SELECT d.normalized AS domain, d.organization_id, 'member' AS default_role, MIN(d.created_at) AS since
    FROM domains AS d
    JOIN organizations AS o ON o.id = d.organization_id AND o.deleted_by IS NULL
    WHERE d.deleted_by IS NULL AND d.verification IN ('verified', 'legacy_verified')
      AND d.normalized IS NOT NULL
      AND NOT EXISTS (SELECT 1 FROM public_domains AS f WHERE f.domain = d.normalized)
      AND NOT EXISTS (
        SELECT 1 FROM domains AS e
        LEFT JOIN organizations AS p ON p.id = e.organization_id
        WHERE e.normalized = d.normalized AND e.organization_id <> d.organization_id AND p.deleted_by IS NULL
          AND e.deleted_by IS NULL AND e.verification IN ('verified', 'legacy_verified'))
    GROUP BY d.normalized, d.organization_id
"""


def _mirror() -> list[sa.Column[Any]]:
    return [
        sa.Column("auto_join", sa.Text(), server_default="mirror", nullable=False),
        sa.Column("auto_join_existing", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("legacy_verified", sa.Boolean(), server_default=sa.true(), nullable=False),
        sa.Column("recheck_after", sa.Text(), nullable=True),
        sa.Column("missing_joins", sa.Integer(), server_default="0", nullable=False),
        sa.Column("without_admin", sa.Integer(), server_default="0", nullable=False),
    ]


def upgrade() -> None:
    for column in _mirror():
        op.add_column("mirror", column)
    op.execute("UPDATE mirror SET recheck_after = ''")
    op.add_column("users", sa.Column("email_normalized", sa.Text(), nullable=True))
    op.add_column("users", sa.Column("email_domain", sa.Text(), nullable=True))
    _fill_addresses()
    op.create_index("ix_users_email_normalized", "users", ["email_normalized"])
    op.create_index("ix_users_email_domain_id", "users", ["email_domain", "id"])
    _make_connections()
    _make_auto_join()
    _make_hooks()
    op.execute("DROP VIEW auto_join_domains")
    for name, query in VIEWS.items():
        op.execute(f"CREATE VIEW {name} AS {query}")


def downgrade() -> None:
    for name in reversed(VIEWS):
        op.execute(f"DROP VIEW {name}")
    for table in ("hook_deliveries", "hooks", "join_searches", "lifted_blocks", "joins"):
        op.drop_table(table)
    for table in ("workspace_settings", "auto_joins", "connections"):
        op.drop_table(table)
    op.drop_index("ix_users_email_domain_id", table_name="users")
    op.drop_index("ix_users_email_normalized", table_name="users")
    op.drop_column("users", "email_domain")
    op.drop_column("users", "email_normalized")
    for column in reversed(_mirror()):
        op.drop_column("mirror", column.name)
    op.execute(f"CREATE VIEW auto_join_domains AS {BEFORE}")


def _make_connections() -> None:
    op.create_table(
        "connections",
        sa.Column("organization_id", sa.Text(), nullable=True, index=True),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("connection_type", sa.Text(), nullable=True),
        sa.Column("status", sa.Text(), nullable=True),
        sa.Column("domains", JsonValue, nullable=True),
        sa.Column("id", sa.Text(), nullable=False, primary_key=True),
        sa.Column("created_at", UtcDateTime(), nullable=True),
        sa.Column("updated_at", UtcDateTime(), nullable=True),
        sa.Column("event_at", UtcDateTime(), nullable=True),
        sa.Column("event_id", sa.Text(), nullable=True),
        sa.Column("deleted_by", sa.Text(), nullable=True),
        sa.Column("revision", sa.Integer(), server_default="0", nullable=False),
        sa.Column("touched_at", UtcDateTime(), nullable=True),
        sa.Column("erased", sa.Boolean(), server_default=sa.false(), nullable=False),
    )


def _make_auto_join() -> None:
    op.create_table(
        "auto_joins",
        sa.Column("domain_id", sa.Text(), nullable=False, primary_key=True),
        sa.Column("domain", sa.Text(), nullable=True),
        sa.Column("organization_id", sa.Text(), nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("since", UtcDateTime(), server_default=db_now(), nullable=False),
    )
    op.create_table(
        "workspace_settings",
        sa.Column("organization_id", sa.Text(), nullable=False, primary_key=True),
        sa.Column("auto_join", sa.Boolean(), nullable=True),
        sa.Column("default_role", sa.Text(), nullable=True),
        sa.Column("who", sa.Text(), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("at", UtcDateTime(), server_default=db_now(), nullable=False),
    )
    op.create_table(
        "joins",
        sa.Column("organization_id", sa.Text(), nullable=False, primary_key=True),
        sa.Column("user_id", sa.Text(), nullable=False, primary_key=True, index=True),
        sa.Column("domain", sa.Text(), nullable=True),
        sa.Column("state", sa.Text(), server_default="pending", nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("cause", sa.Text(), nullable=False),
        sa.Column("cause_id", sa.Text(), nullable=False),
        sa.Column("created_at", UtcDateTime(), server_default=db_now(), nullable=False),
        sa.Column("due_at", UtcDateTime(), server_default=db_now(), nullable=False),
        sa.Column("settled_at", UtcDateTime(), nullable=True),
        sa.Column("complete_from", UtcDateTime(), nullable=True),
        sa.Column("claim", sa.Integer(), server_default="0", nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("attempted_at", UtcDateTime(), nullable=True),
        sa.Column("membership_id", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
    )
    open_joins = sa.text("state IN ('pending', 'undo')")
    op.create_index("ix_joins_open", "joins", ["due_at"], postgresql_where=open_joins, sqlite_where=open_joins)
    op.create_table(
        "lifted_blocks",
        sa.Column("membership_id", sa.Text(), nullable=False, primary_key=True),
        sa.Column("who", sa.Text(), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("at", UtcDateTime(), server_default=db_now(), nullable=False),
    )
    op.create_table(
        "join_searches",
        sa.Column("organization_id", sa.Text(), nullable=False, primary_key=True),
        sa.Column("domain", sa.Text(), nullable=False, primary_key=True),
        sa.Column("created_after", UtcDateTime(), nullable=True),
        sa.Column("after", sa.Text(), server_default="", nullable=False),
        sa.Column("cause", sa.Text(), nullable=False),
        sa.Column("cause_id", sa.Text(), nullable=False),
    )


def _make_hooks() -> None:
    op.create_table(
        "hooks",
        sa.Column("name", sa.Text(), nullable=False, primary_key=True),
        sa.Column("cursor", sa.BigInteger(), nullable=False),
        sa.Column("leased_until", UtcDateTime(), nullable=True),
        sa.Column("fence", sa.Integer(), server_default="0", nullable=False),
        sa.Column("delivered", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("delivered_at", UtcDateTime(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
    )
    op.create_table(
        "hook_deliveries",
        sa.Column("hook", sa.Text(), nullable=False, primary_key=True),
        sa.Column("change_id", sa.BigInteger(), nullable=False, primary_key=True, autoincrement=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("object_id", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), server_default="pending", nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("due_at", UtcDateTime(), server_default=db_now(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("traceback", sa.Text(), nullable=True),
    )
    op.create_index("ix_hook_deliveries_hook_status", "hook_deliveries", ["hook", "status", "due_at"])
    op.create_index("ix_hook_deliveries_object", "hook_deliveries", ["hook", "kind", "object_id", "change_id"])


def _fill_addresses() -> None:
    users = sa.table(
        "users", sa.column("id"), sa.column("email"), sa.column("email_normalized"), sa.column("email_domain")
    )
    tx = op.get_bind()
    update = sa.update(users).where(users.c.id == sa.bindparam("key"))
    for rows in _pages(tx, users):
        tx.execute(update, [{"key": id, **_address(email)} for id, email in rows])


def _pages(tx: sa.Connection, users: Any) -> Iterator[list[Any]]:
    last = ""
    page = sa.select(users.c.id, users.c.email).where(users.c.email.is_not(None)).order_by(users.c.id).limit(STEP)
    while rows := list(tx.execute(page.where(users.c.id > last))):
        yield rows
        last = rows[-1][0]


def _address(email: str) -> dict[str, str | None]:
    local, _, host = email.rpartition("@")
    try:
        domain = idna.encode(host.rstrip("."), uts46=True, transitional=False).decode("ascii").lower()
    except (idna.IDNAError, UnicodeError):
        domain = ""
    usable = bool(local) and "." in domain
    return {
        "email_normalized": f"{local.lower()}@{domain}" if usable else None,
        "email_domain": domain if usable else None,
    }
