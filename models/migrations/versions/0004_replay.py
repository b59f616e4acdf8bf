"""Replay: fingerprints of errors, dismissal, and what a run of it is about."""

import sqlalchemy as sa
from alembic import op

from models.types import JsonValue

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

EVENTS = ("fingerprint", "replay_id", "dismissed_by", "dismissed_why")


def upgrade() -> None:
    for name in EVENTS:
        op.add_column("events", sa.Column(name, sa.Text(), nullable=True))
    op.add_column("events", sa.Column("replays", sa.Integer(), server_default="0", nullable=False))
    op.create_index("ix_events_replay_id", "events", ["replay_id"])
    op.add_column("runs", sa.Column("selection", JsonValue, nullable=True))
    op.add_column("runs", sa.Column("reason", sa.Text(), nullable=True))
    op.add_column("runs", sa.Column("after", sa.Text(), nullable=True))
    op.add_column("runs", sa.Column("total", sa.Integer(), nullable=True))
    for name in ("done", "skipped"):
        op.add_column("runs", sa.Column(name, sa.Integer(), server_default="0", nullable=False))


def downgrade() -> None:
    for name in ("skipped", "done", "total", "after", "reason", "selection"):
        op.drop_column("runs", name)
    op.drop_index("ix_events_replay_id", table_name="events")
    for name in ("replays", *reversed(EVENTS)):
        op.drop_column("events", name)
