"""The views other programs may read, as selectable tables. Migrations hold their definitions."""

from sqlalchemy import Column, MetaData, Table, Text

from models.types import UtcDateTime

metadata = MetaData()
"""Apart from the tables' metadata, so that nothing tries to create these as tables."""

workspace_members = Table(
    "workspace_members",
    metadata,
    Column("organization_id", Text),
    Column("workspace_name", Text),
    Column("user_id", Text),
    Column("email", Text),
    Column("role", Text),
    Column("workos_role", Text),
    Column("status", Text),
    Column("membership_id", Text),
    Column("since", UtcDateTime),
)
"""People who have access now: live workspace, active membership, live user; one row per workspace and user."""

auto_join_domains = Table(
    "auto_join_domains",
    metadata,
    Column("domain", Text),
    Column("organization_id", Text),
    Column("default_role", Text),
    Column("since", UtcDateTime),
)
"""Domains that auto-join now: verified, on one live workspace only."""

workspaces = Table(
    "workspaces",
    metadata,
    Column("organization_id", Text),
    Column("name", Text),
    Column("external_id", Text),
    Column("state", Text),
    Column("created_at", UtcDateTime),
    Column("updated_at", UtcDateTime),
)
"""All workspaces; `state` is `active` or `deleted`."""

mirror_status = Table(
    "mirror_status",
    metadata,
    Column("state", Text),
    Column("complete_to", UtcDateTime),
    Column("last_resync", UtcDateTime),
)
"""One row: `backfilling` until a full resync and catch-up are done, then `current`."""
