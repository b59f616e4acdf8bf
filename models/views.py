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

auto_join_blocks = Table(
    "auto_join_blocks",
    metadata,
    Column("organization_id", Text),
    Column("user_id", Text),
    Column("email_normalized", Text),
    Column("reason", Text),
    Column("email_hash", Text),
)
"""Who does not join a workspace by domain: removed, deactivated, invited, or blocked by an operator.

The one rule for the views, the API and the worker. It holds for the person and for everyone who ever had one of their
addresses. Ask by `user_id`, or for an address by `email_hash` (`models.access.Address.hash`). A person who was deleted
as an active member was not removed. Rows may repeat.
"""

sign_in_methods = Table(
    "sign_in_methods",
    metadata,
    Column("organization_id", Text),
    Column("connection_id", Text),
    Column("connection_type", Text),
    Column("name", Text),
    Column("since", UtcDateTime),
)
"""Single sign-on that works now: one row an active connection; a workspace without a row has it off."""

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
