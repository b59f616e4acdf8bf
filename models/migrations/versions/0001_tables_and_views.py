"""Tables, views and the single row of `mirror`."""

import sqlalchemy as sa
from alembic import op

from models.types import JsonValue, UtcDateTime, db_now

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

VIEWS = {
    # One row per workspace and user: of several active memberships the newest (a re-invited person has a new id).
    "workspace_members": """
        SELECT m.organization_id, o.name AS workspace_name, m.user_id, u.email, m.role, m.workos_role, m.status,
               m.id AS membership_id, m.created_at AS since
        FROM memberships AS m
        JOIN organizations AS o ON o.id = m.organization_id AND o.deleted_by IS NULL
        JOIN users AS u ON u.id = m.user_id AND u.deleted_by IS NULL
        WHERE m.deleted_by IS NULL AND m.status = 'active' AND NOT EXISTS (
            SELECT 1 FROM memberships AS n
            WHERE n.organization_id = m.organization_id AND n.user_id = m.user_id
              AND n.deleted_by IS NULL AND n.status = 'active' AND (n.created_at, n.id) > (m.created_at, m.id))
    """,
    # A conflict is derived here, not stored, so that no two writers can disagree about it. A workspace not known yet
    # is a rival too: until it is known to be gone, nobody joins by guess.
    "auto_join_domains": """
        SELECT d.normalized AS domain, d.organization_id, 'member' AS default_role, MIN(d.created_at) AS since
        FROM domains AS d
        JOIN organizations AS o ON o.id = d.organization_id AND o.deleted_by IS NULL
        WHERE d.deleted_by IS NULL AND d.verification IN ('verified', 'legacy_verified')
          AND d.normalized IS NOT NULL AND NOT EXISTS (
            SELECT 1 FROM domains AS e
            LEFT JOIN organizations AS p ON p.id = e.organization_id
            WHERE e.normalized = d.normalized AND e.organization_id <> d.organization_id AND p.deleted_by IS NULL
              AND e.deleted_by IS NULL AND e.verification IN ('verified', 'legacy_verified'))
        GROUP BY d.normalized, d.organization_id
    """,
    "workspaces": """
        SELECT o.id AS organization_id, o.name, o.external_id,
               CASE WHEN o.deleted_by IS NULL THEN 'active' ELSE 'deleted' END AS state, o.created_at, o.updated_at
        FROM organizations AS o
    """,
    "mirror_status": """
        SELECT CASE WHEN m.backfilled_at IS NULL THEN 'backfilling' ELSE 'current' END AS state,
               m.complete_to, m.last_resync_at AS last_resync
        FROM mirror AS m
    """,
}


def upgrade() -> None:
    op.create_table(
        "batches",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("event_ids", JsonValue, nullable=False),
        sa.Column("started_at", UtcDateTime(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_batches"),
    )
    op.create_table(
        "changes",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("at", UtcDateTime(), server_default=db_now(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("object_id", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=True),
        sa.Column("before", JsonValue, nullable=True),
        sa.Column("after", JsonValue, nullable=False),
        sa.Column("cause", sa.Text(), nullable=False),
        sa.Column("cause_id", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_changes"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_changes_object_id_id", "changes", ["object_id", "id"])
    op.create_index("ix_changes_organization_id_id", "changes", ["organization_id", "id"])
    op.create_table(
        "domains",
        sa.Column("organization_id", sa.Text(), nullable=True),
        sa.Column("domain", sa.Text(), nullable=True),
        sa.Column("normalized", sa.Text(), nullable=True),
        sa.Column("verification", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=True),
        sa.Column("updated_at", UtcDateTime(), nullable=True),
        sa.Column("event_at", UtcDateTime(), nullable=True),
        sa.Column("event_id", sa.Text(), nullable=True),
        sa.Column("deleted_by", sa.Text(), nullable=True),
        sa.Column("revision", sa.Integer(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_domains"),
    )
    op.create_index("ix_domains_normalized", "domains", ["normalized"])
    op.create_index("ix_domains_organization_id", "domains", ["organization_id"])
    op.create_table(
        "events",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=True),
        sa.Column("received_at", UtcDateTime(), server_default=db_now(), nullable=False),
        sa.Column("deliveries", sa.Integer(), server_default="1", nullable=False),
        sa.Column("last_delivered_at", UtcDateTime(), server_default=db_now(), nullable=False),
        sa.Column("status", sa.Text(), server_default="pending", nullable=False),
        sa.Column("due_at", UtcDateTime(), server_default=db_now(), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.Column("decided_by", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("processed_at", UtcDateTime(), nullable=True),
        sa.Column("occurred_at", UtcDateTime(), nullable=True),
        sa.Column("kind", sa.Text(), nullable=True),
        sa.Column("object_id", sa.Text(), nullable=True),
        sa.Column("organization_id", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_events"),
    )
    op.create_index(
        "ix_events_failed",
        "events",
        ["received_at"],
        postgresql_where=sa.text("status = 'failed'"),
        sqlite_where=sa.text("status = 'failed'"),
    )
    op.create_index("ix_events_object_id", "events", ["object_id"])
    op.create_index("ix_events_organization_id", "events", ["organization_id", "received_at"])
    op.create_index(
        "ix_events_pending",
        "events",
        ["due_at", "id"],
        postgresql_where=sa.text("status = 'pending'"),
        sqlite_where=sa.text("status = 'pending'"),
    )
    op.create_index(
        "ix_events_pending_received_at",
        "events",
        ["received_at"],
        postgresql_where=sa.text("status = 'pending'"),
        sqlite_where=sa.text("status = 'pending'"),
    )
    op.create_index("ix_events_received_at", "events", ["received_at"])
    op.create_index("ix_events_type", "events", ["type", "received_at"])
    op.create_table(
        "memberships",
        sa.Column("organization_id", sa.Text(), nullable=True),
        sa.Column("user_id", sa.Text(), nullable=True),
        sa.Column("status", sa.Text(), nullable=True),
        sa.Column("workos_roles", JsonValue, nullable=True),
        sa.Column("workos_role", sa.Text(), nullable=True),
        sa.Column("role", sa.Text(), nullable=True),
        sa.Column("directory_managed", sa.Boolean(), nullable=True),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=True),
        sa.Column("updated_at", UtcDateTime(), nullable=True),
        sa.Column("event_at", UtcDateTime(), nullable=True),
        sa.Column("event_id", sa.Text(), nullable=True),
        sa.Column("deleted_by", sa.Text(), nullable=True),
        sa.Column("revision", sa.Integer(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_memberships"),
    )
    op.create_index("ix_memberships_organization_id_user_id", "memberships", ["organization_id", "user_id"])
    op.create_index("ix_memberships_user_id", "memberships", ["user_id"])
    mirror = op.create_table(
        "mirror",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("role_map", JsonValue, nullable=False),
        sa.Column("remap_after", sa.Text(), nullable=True),
        sa.Column("backfilled_at", UtcDateTime(), nullable=True),
        sa.Column("complete_to", UtcDateTime(), nullable=True),
        sa.Column("last_resync_at", UtcDateTime(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_mirror"),
    )
    op.create_table(
        "organizations",
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("external_id", sa.Text(), nullable=True),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=True),
        sa.Column("updated_at", UtcDateTime(), nullable=True),
        sa.Column("event_at", UtcDateTime(), nullable=True),
        sa.Column("event_id", sa.Text(), nullable=True),
        sa.Column("deleted_by", sa.Text(), nullable=True),
        sa.Column("revision", sa.Integer(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_organizations"),
    )
    op.create_table(
        "roles",
        sa.Column("organization_id", sa.Text(), nullable=True),
        sa.Column("slug", sa.Text(), nullable=True),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("permissions", JsonValue, nullable=True),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=True),
        sa.Column("updated_at", UtcDateTime(), nullable=True),
        sa.Column("event_at", UtcDateTime(), nullable=True),
        sa.Column("event_id", sa.Text(), nullable=True),
        sa.Column("deleted_by", sa.Text(), nullable=True),
        sa.Column("revision", sa.Integer(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_roles"),
    )
    op.create_index("ix_roles_organization_id", "roles", ["organization_id"])
    op.create_table(
        "users",
        sa.Column("email", sa.Text(), nullable=True),
        sa.Column("email_verified", sa.Boolean(), nullable=True),
        sa.Column("first_name", sa.Text(), nullable=True),
        sa.Column("last_name", sa.Text(), nullable=True),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=True),
        sa.Column("updated_at", UtcDateTime(), nullable=True),
        sa.Column("event_at", UtcDateTime(), nullable=True),
        sa.Column("event_id", sa.Text(), nullable=True),
        sa.Column("deleted_by", sa.Text(), nullable=True),
        sa.Column("revision", sa.Integer(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_users"),
    )
    op.create_index("ix_users_email", "users", ["email"])
    for name, query in VIEWS.items():
        op.execute(f"CREATE VIEW {name} AS {query}")
    op.bulk_insert(mirror, [{"id": 1, "role_map": {"admin": "admin", "member": "member"}}])


def downgrade() -> None:
    for name in reversed(VIEWS):
        op.execute(f"DROP VIEW {name}")
    op.drop_index("ix_users_email", table_name="users")
    op.drop_table("users")
    op.drop_index("ix_roles_organization_id", table_name="roles")
    op.drop_table("roles")
    op.drop_table("organizations")
    op.drop_table("mirror")
    op.drop_index("ix_memberships_user_id", table_name="memberships")
    op.drop_index("ix_memberships_organization_id_user_id", table_name="memberships")
    op.drop_table("memberships")
    op.drop_index("ix_events_received_at", table_name="events")
    op.drop_index(
        "ix_events_pending",
        table_name="events",
        postgresql_where=sa.text("status = 'pending'"),
        sqlite_where=sa.text("status = 'pending'"),
    )
    op.drop_index("ix_events_organization_id", table_name="events")
    op.drop_index("ix_events_object_id", table_name="events")
    op.drop_index(
        "ix_events_failed",
        table_name="events",
        postgresql_where=sa.text("status = 'failed'"),
        sqlite_where=sa.text("status = 'failed'"),
    )
    op.drop_table("events")
    op.drop_index("ix_domains_organization_id", table_name="domains")
    op.drop_index("ix_domains_normalized", table_name="domains")
    op.drop_table("domains")
    op.drop_index("ix_changes_organization_id_id", table_name="changes")
    op.drop_index("ix_changes_object_id_id", table_name="changes")
    op.drop_table("changes")
    op.drop_table("batches")
