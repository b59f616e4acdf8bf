"""Resync, catch-up, confirmed reads and the clock's ticks."""

import sqlalchemy as sa
from alembic import op

from models.types import JsonValue, UtcDateTime, db_now

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


EVENTS = sa.table("events", sa.column("webhook_at", UtcDateTime()), sa.column("received_at", UtcDateTime()))
MIRRORED = ("organizations", "users", "memberships", "domains", "roles")


def upgrade() -> None:
    for table in MIRRORED:
        op.add_column(table, sa.Column("touched_at", UtcDateTime(), nullable=True))
        op.execute(sa.update(sa.table(table, sa.column("touched_at", UtcDateTime()))).values(touched_at=db_now()))
        op.add_column(table, sa.Column("erased", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.create_table(
        "drift",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("object_id", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=True),
        sa.Column("finding", sa.Text(), nullable=False),
        sa.Column("fields", JsonValue, nullable=True),
        sa.Column("action", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "kind", "object_id", name="pk_drift"),
    )
    op.create_table(
        "listings",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("parent", sa.Text(), nullable=False),
        sa.Column("after", sa.Text(), nullable=True),
        sa.Column("state", sa.Text(), server_default="open", nullable=False),
        sa.Column("odd", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("began_at", UtcDateTime(), nullable=True),
        sa.PrimaryKeyConstraint("run_id", "name", "parent", name="pk_listings"),
    )
    op.create_table(
        "reads",
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("object_id", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text(), server_default="", nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("due_at", UtcDateTime(), server_default=db_now(), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("kind", "object_id", "run_id", name="pk_reads"),
    )
    op.create_index("ix_reads_due_at", "reads", ["due_at"])
    op.create_table(
        "runs",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=True),
        sa.Column("dry_run", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("approves", sa.Text(), nullable=True),
        sa.Column("requested_by", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), server_default="running", nullable=False),
        sa.Column("phase", sa.Text(), server_default="list", nullable=False),
        sa.Column("created_at", UtcDateTime(), server_default=db_now(), nullable=False),
        sa.Column("finished_at", UtcDateTime(), nullable=True),
        sa.Column("leased_until", UtcDateTime(), nullable=True),
        sa.Column("fence", sa.Integer(), server_default="0", nullable=False),
        sa.Column("calls", sa.Integer(), server_default="0", nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_runs"),
    )
    op.create_index("ix_runs_created_at", "runs", ["created_at"])
    op.create_table(
        "seen",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("object_id", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "kind", "object_id", name="pk_seen"),
    )
    op.create_table(
        "ticks",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_ticks"),
    )
    op.add_column("events", sa.Column("webhook_at", UtcDateTime(), nullable=True))
    op.add_column("events", sa.Column("api_at", UtcDateTime(), nullable=True))
    op.create_index("ix_events_api_at", "events", ["api_at"])
    # Until now every event came by webhook: what the events API returns again is no gap.
    op.execute(sa.update(EVENTS).values(webhook_at=EVENTS.c.received_at))
    op.add_column("mirror", sa.Column("client_id", sa.Text(), nullable=True))
    op.add_column("mirror", sa.Column("known_organizations", JsonValue, nullable=True))
    op.add_column("mirror", sa.Column("backfill_from", UtcDateTime(), nullable=True))
    op.add_column("mirror", sa.Column("cursor", sa.Text(), nullable=True))
    op.add_column("mirror", sa.Column("cursor_at", UtcDateTime(), nullable=True))
    op.add_column("mirror", sa.Column("inbox_to", UtcDateTime(), nullable=True))
    op.add_column("mirror", sa.Column("inbox_at", UtcDateTime(), nullable=True))
    op.add_column("mirror", sa.Column("event_types", JsonValue, nullable=True))


def downgrade() -> None:
    for table in MIRRORED:
        op.drop_column(table, "erased")
        op.drop_column(table, "touched_at")
    op.drop_column("mirror", "event_types")
    op.drop_column("mirror", "inbox_at")
    op.drop_column("mirror", "inbox_to")
    op.drop_column("mirror", "cursor_at")
    op.drop_column("mirror", "cursor")
    op.drop_column("mirror", "backfill_from")
    op.drop_column("mirror", "known_organizations")
    op.drop_column("mirror", "client_id")
    op.drop_index("ix_events_api_at", table_name="events")
    op.drop_column("events", "api_at")
    op.drop_column("events", "webhook_at")
    op.drop_table("ticks")
    op.drop_table("seen")
    op.drop_index("ix_runs_created_at", table_name="runs")
    op.drop_table("runs")
    op.drop_index("ix_reads_due_at", table_name="reads")
    op.drop_table("reads")
    op.drop_table("listings")
    op.drop_table("drift")
