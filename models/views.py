"""The views that other programs read: the rules for access, auto-join, and keeping removed people out.

`workspace_members` decides access, `auto_join_domains` who joins by domain, and `auto_join_blocks` who stays out.
`models.migrate` updates the views of a database.

Columns are only ever added, at the end. The SQL must run on SQLite and PostgreSQL; `FUNCTIONS` replaces the names in
braces. `NOT MATERIALIZED` lets both databases push the reader's conditions into a named query, so that they find rows
by an index.
"""

from typing import Any, NamedTuple

from sqlalchemy import (
    Column,
    Connection,
    Float,
    Function,
    Integer,
    MetaData,
    SQLColumnExpression,
    Subquery,
    Table,
    TableValuedAlias,
    Text,
    column,
    func,
    inspect,
    text,
)

from models.types import JsonValue, UtcDateTime

metadata = MetaData()
"""Separate from the tables' metadata, so that nothing creates these as tables."""


class View(NamedTuple):
    """A view: the table to select from, and the query that defines it."""

    table: Table
    query: str


TIMES = (
    *("since", "created_at", "updated_at", "complete_to", "last_resync"),
    *("expires_at", "accepted_at", "revoked_at", "certificate_expires_at"),
)
TYPES: dict[str, Any] = {
    **dict.fromkeys(TIMES, UtcDateTime),
    **dict.fromkeys(("age_seconds", "smallest_bound_seconds"), Float),
    **dict.fromkeys(("metadata", "user_metadata", "custom_attributes"), JsonValue),
    "seats": Integer,
}
"""Column → type. All others hold text."""
SOURCES = {name: name for name in ("memberships", "organizations", "users", "roles", "mirror")}
SOURCES |= {"siblings": "memberships"}
"""Name in the query of `workspace_members` → the table that it reads. `members_query` replaces them.

`siblings` needs only the memberships of people who have several in a workspace.
"""
COMMON = SOURCES | {"auto_join_is_on": "mirror.auto_join <> 'off'"}
"""Replacements for names in braces that are the same for both databases.

`auto_join_is_on` is the condition of `auto_join_domains` on the setting. `domains_that_can_auto_join` replaces it.
"""
FUNCTIONS = {
    "sqlite": {
        "json_items": "json_each",
        "json_fields": "json_each",
        "time_now": "strftime('%Y-%m-%dT%H:%M:%f000+00:00', 'now')",
        "mirror_age": "(julianday('now') - julianday(tail.complete_at)) * 86400.0",
    }
    | COMMON,
    "postgresql": {
        "json_items": "jsonb_array_elements_text",
        "json_fields": "jsonb_each_text",
        "time_now": "now()",
        # Not `now()`, which does not advance in a transaction: in a long one, an old answer would count as new.
        "mirror_age": "CAST(EXTRACT(EPOCH FROM clock_timestamp() - tail.complete_at) AS double precision)",
    }
    | COMMON,
}
"""Replacements for the names in braces, by database.

The items of a JSON list (`value`), the fields of a JSON object (`key`, `value`), the time, the age of
`tail.complete_to` in seconds, and `COMMON`.
"""


def json_items(tx: Connection, items: SQLColumnExpression[Any]) -> TableValuedAlias:
    """Return the items of a JSON list as rows, which have them as `value`."""
    function: Function[Any] = getattr(func, FUNCTIONS[tx.dialect.name]["json_items"])(items)
    return function.table_valued("value")


VIEWS: dict[str, View] = {}
"""Every view by its name, in the order in which they are created."""


def _view(name: str, columns: str, query: str) -> Table:
    typed = [Column(column, TYPES.get(column, Text)) for column in columns.split()]
    VIEWS[name] = View(Table(name, metadata, *typed), query.strip())
    return VIEWS[name].table


workspace_members = _view(
    "workspace_members",
    "organization_id workspace_name user_id email role workos_role status membership_id since"
    " workspace_external_id user_external_id user_metadata custom_attributes",
    """
SELECT membership.organization_id, workspace.name AS workspace_name, membership.user_id, person.email,
       CASE WHEN membership.role = 'admin' AND NOT EXISTS (
              -- Of the member's roles that map to it, one must be a role of organizations.
              SELECT 1 FROM {json_items}(membership.workos_roles) AS held
              CROSS JOIN {mirror} AS mirror
              JOIN {json_fields}(mirror.role_map) AS mapped ON mapped.key = held.value AND mapped.value = 'admin'
              WHERE NOT EXISTS (
                SELECT 1 FROM {roles} AS other
                WHERE other.id IN (held.value, membership.organization_id || '/' || held.value)
                  AND other.resource_type <> 'organization'))
            THEN 'member' ELSE membership.role END AS role,
       membership.workos_role, membership.status, membership.id AS membership_id, membership.created_at AS since,
       workspace.external_id AS workspace_external_id, person.external_id AS user_external_id,
       person.metadata AS user_metadata, membership.custom_attributes
FROM {memberships} AS membership
JOIN {organizations} AS workspace ON workspace.id = membership.organization_id AND workspace.deleted_by IS NULL
JOIN {users} AS person ON person.id = membership.user_id AND person.deleted_by IS NULL
WHERE membership.deleted_by IS NULL AND membership.status = 'active'
  -- Of several active memberships of a person in a workspace, the newest counts.
  AND NOT EXISTS (
    SELECT 1 FROM {siblings} AS newer
    WHERE newer.organization_id = membership.organization_id AND newer.user_id = membership.user_id
      AND newer.deleted_by IS NULL AND newer.status = 'active'
      AND (newer.created_at, newer.id) > (membership.created_at, membership.id))
""",
)
"""People who have access now: live workspace, active membership, live user; one row per workspace and user.

A role of another resource type than `organization` is never a member's role: it counts as `member`.
"""


def members_query(dialect: str, prefix: str) -> str:
    """Return the query of `workspace_members` over other tables: those in `SOURCES`, with `prefix` before their names.

    They must have the columns that the view reads.
    """
    return VIEWS["workspace_members"].query.format_map(FUNCTIONS[dialect] | {n: f"{prefix}{n}" for n in SOURCES})


workspaces = _view(
    "workspaces",
    "organization_id name external_id state created_at updated_at stripe_customer_id metadata",
    """
SELECT id AS organization_id, name, external_id,
       CASE WHEN deleted_by IS NULL THEN 'active' ELSE 'deleted' END AS state, created_at, updated_at,
       stripe_customer_id, metadata
FROM organizations
""",
)
"""All workspaces; `state` is `active` or `deleted`."""

seats = _view(
    "seats",
    "organization_id workspace_name stripe_customer_id external_id seats",
    """
SELECT workspace.id AS organization_id, workspace.name AS workspace_name, workspace.stripe_customer_id,
       workspace.external_id,
       (SELECT COUNT(*) FROM workspace_members AS member WHERE member.organization_id = workspace.id) AS seats
FROM organizations AS workspace
WHERE workspace.deleted_by IS NULL
""",
)
"""Live workspaces, with the number of people in `workspace_members`; 0 if there are none."""

mirror_status = _view(
    "mirror_status",
    "state complete_to last_resync age_seconds smallest_bound_seconds error",
    """
SELECT CASE WHEN mirror.backfilled_at IS NULL THEN 'backfilling' ELSE 'current' END AS state,
       tail.complete_to, mirror.last_resync_at AS last_resync, {mirror_age} AS age_seconds,
       -- Every bound that can be met allows 5 seconds for reading and applying.
       tail.hold_back_seconds + tail.tail_seconds + 5.0 AS smallest_bound_seconds, tail.error
FROM mirror
LEFT JOIN tail ON tail.id = 'events'
""",
)
"""One row: `backfilling` until a full resync and catch-up are done, then `current`.

Every event up to `complete_to`, by WorkOS's clock, is applied, or has failed (docs/integration.md, Bounded staleness).
`age_seconds` is the age of `complete_to`, by the database's clock.
"""

uncertain_access = _view(
    "uncertain_access",
    "organization_id user_id event_id since",
    """
SELECT organization_id, user_id, event_id, since FROM failed_effects
""",
)
"""Access that a failed event may have changed. An empty id means all workspaces, or all persons."""
EXPIRED_EVENTS = "expired-events"
"""The `event_id` in `uncertain_access` if events expired at WorkOS before they were read."""
LARGEST_BOUND = 86_400.0
"""The largest staleness bound, in seconds: a day."""

auto_join_domains = _view(
    "auto_join_domains",
    "domain organization_id default_role since",
    """
WITH
-- Domains that a workspace holds verified. Claims of organizations that are not mirrored yet count.
holder AS NOT MATERIALIZED (
    SELECT claim.normalized AS domain, claim.organization_id, claim.created_at
    FROM domains AS claim
    LEFT JOIN organizations AS workspace ON workspace.id = claim.organization_id
    WHERE claim.deleted_by IS NULL AND claim.verification IN ('verified', 'legacy_verified')
      AND workspace.deleted_by IS NULL
)
SELECT holder.domain, holder.organization_id, COALESCE(own.default_role, 'member') AS default_role,
       MIN(holder.created_at) AS since
FROM holder
JOIN mirror ON {auto_join_is_on}
JOIN organizations AS workspace ON workspace.id = holder.organization_id
LEFT JOIN workspace_settings AS own ON own.organization_id = holder.organization_id
WHERE holder.domain IS NOT NULL
  AND COALESCE(own.auto_join, TRUE)
  AND NOT EXISTS (SELECT 1 FROM public_domains AS provider WHERE provider.domain = holder.domain)
  -- In conflict: another workspace holds it too.
  AND NOT EXISTS (
    SELECT 1 FROM holder AS rival
    WHERE rival.domain = holder.domain AND rival.organization_id <> holder.organization_id)
GROUP BY holder.domain, holder.organization_id, own.default_role
""",
)
"""Domains that auto-join now: verified, by one live workspace only, of no public mail provider, not switched off."""


def domains_that_can_auto_join() -> Subquery:
    """Return the rows of `auto_join_domains` as they would be if `AUTO_JOIN` were on."""
    columns = auto_join_domains.columns
    return (
        text(VIEWS[auto_join_domains.name].query.format(auto_join_is_on="TRUE"))
        .columns(*(column(each.name, each.type) for each in columns))
        .subquery()
    )


auto_join_blocks = _view(
    "auto_join_blocks",
    "organization_id user_id email_normalized reason email_hash",
    """
WITH
-- From memberships: people who were removed, deactivated or invited, or whose status is unknown here.
not_active AS NOT MATERIALIZED (
    SELECT membership.organization_id, membership.user_id,
           CASE WHEN membership.deleted_by IS NOT NULL THEN 'removed'
                WHEN membership.status = 'inactive' THEN 'deactivated'
                WHEN membership.status = 'pending' THEN 'invited'
                ELSE 'of no known status' END AS reason
    FROM memberships AS membership
    LEFT JOIN users AS person ON person.id = membership.user_id
    WHERE (membership.deleted_by IS NOT NULL OR membership.status IS NULL OR membership.status <> 'active')
      -- An operator unblocked it.
      AND NOT EXISTS (SELECT 1 FROM unblocked_memberships AS unblocked WHERE unblocked.membership_id = membership.id)
      -- The person has another active membership.
      AND NOT EXISTS (
        SELECT 1 FROM memberships AS active
        WHERE active.organization_id = membership.organization_id AND active.user_id = membership.user_id
          AND active.deleted_by IS NULL AND active.status = 'active')
      -- Deleting a user at WorkOS also deletes their memberships. If the user was deleted first, and the membership was
      -- still active, nobody removed the person from the workspace, so it does not block.
      AND (person.deleted_by IS NULL
           OR NOT (membership.deleted_by = 'event' AND membership.status = 'active' AND person.deleted_by = 'event'
                   AND (membership.event_at, membership.event_id) > (person.event_at, person.event_id)))
),
-- From joins: people that an operator or the provisioning worker blocked.
blocked_join AS NOT MATERIALIZED (
    SELECT organization_id, user_id, reason FROM joins WHERE state IN ('blocked', 'undone')
),
-- From invitations: addresses that are invited, or whose invitation was revoked.
invited AS NOT MATERIALIZED (
    SELECT invitation.organization_id, invitation.email_normalized, address.email_hash,
           CASE WHEN invitation.status = 'pending' THEN 'invitation pending'
                WHEN invitation.status = 'revoked' THEN 'invitation revoked'
                ELSE 'invitation of no known status' END AS reason
    FROM invited_addresses AS address
    JOIN invitations AS invitation ON invitation.id = address.invitation_id
    WHERE invitation.organization_id IS NOT NULL
      -- Without a known status or time, it blocks. It expires without an event.
      AND COALESCE(invitation.status NOT IN ('accepted', 'expired')
                   AND (invitation.status <> 'pending' OR invitation.expires_at > {time_now}), TRUE)
      -- An operator unblocked it, and it has not changed its status since.
      AND NOT EXISTS (
        SELECT 1 FROM unblocked_invitations AS unblocked
        WHERE unblocked.invitation_id = invitation.id AND unblocked.status = COALESCE(invitation.status, ''))
),
-- By address: the other users who ever had an address of the user `same_as`, with all their addresses.
shares_address AS NOT MATERIALIZED (
    SELECT own.user_id AS same_as, every.user_id, every.email_hash, person.email_normalized
    FROM user_addresses AS own
    JOIN user_addresses AS shared ON shared.email_hash = own.email_hash
    JOIN user_addresses AS every ON every.user_id = shared.user_id
    JOIN users AS person ON person.id = every.user_id
    WHERE every.user_id <> own.user_id
)
-- One query for each source: neither database uses its indexes if a named query unites the sources.
SELECT blocked.organization_id, blocked.user_id, person.email_normalized, blocked.reason, address.email_hash
FROM not_active AS blocked
LEFT JOIN users AS person ON person.id = blocked.user_id
LEFT JOIN user_addresses AS address ON address.user_id = blocked.user_id
UNION ALL
SELECT blocked.organization_id, blocked.user_id, person.email_normalized, blocked.reason, address.email_hash
FROM blocked_join AS blocked
LEFT JOIN users AS person ON person.id = blocked.user_id
LEFT JOIN user_addresses AS address ON address.user_id = blocked.user_id
UNION ALL
SELECT blocked.organization_id, other.user_id, other.email_normalized, blocked.reason, other.email_hash
FROM not_active AS blocked
JOIN shares_address AS other ON other.same_as = blocked.user_id
UNION ALL
SELECT blocked.organization_id, other.user_id, other.email_normalized, blocked.reason, other.email_hash
FROM blocked_join AS blocked
JOIN shares_address AS other ON other.same_as = blocked.user_id
UNION ALL
SELECT invited.organization_id, own.user_id, invited.email_normalized, invited.reason, invited.email_hash
FROM invited
LEFT JOIN user_addresses AS own ON own.email_hash = invited.email_hash
UNION ALL
SELECT invited.organization_id, other.user_id, person.email_normalized, invited.reason, other.email_hash
FROM invited
JOIN user_addresses AS own ON own.email_hash = invited.email_hash
JOIN user_addresses AS other ON other.user_id = own.user_id AND other.email_hash <> own.email_hash
JOIN users AS person ON person.id = other.user_id
UNION ALL
SELECT invited.organization_id, other.user_id, other.email_normalized, invited.reason, other.email_hash
FROM invited
JOIN user_addresses AS own ON own.email_hash = invited.email_hash
JOIN shares_address AS other ON other.same_as = own.user_id
""",
)
"""People who do not join a workspace by domain.

They were removed, deactivated, invited, blocked by an operator or undone by the worker, or their status is unknown.

The views, the API and the worker all use this rule. It covers the person and everyone who ever had one of their
addresses. Look up a person by `user_id`, and an address by `email_hash` (`models.addresses.Address.hash`). A person who
was deleted while an active member does not count as removed. An invitation blocks every user who ever had its address;
`user_id` is null if there is none. Rows may repeat.
"""

workspace_invitations = _view(
    "workspace_invitations",
    "organization_id invitation_id email email_normalized status workos_role inviter_user_id accepted_user_id"
    " created_at expires_at accepted_at revoked_at",
    """
SELECT invitation.organization_id, invitation.id AS invitation_id, invitation.email, invitation.email_normalized,
       CASE WHEN invitation.status = 'pending' AND invitation.expires_at <= {time_now} THEN 'expired'
            ELSE invitation.status END AS status,
       invitation.role_slug AS workos_role, invitation.inviter_user_id, invitation.accepted_user_id,
       invitation.created_at, invitation.expires_at, invitation.accepted_at, invitation.revoked_at
FROM invitations AS invitation
JOIN organizations AS workspace ON workspace.id = invitation.organization_id AND workspace.deleted_by IS NULL
WHERE invitation.deleted_by IS NULL
""",
)
"""Invitations to live workspaces. A pending one past `expires_at` is `expired`, although WorkOS sends no event."""

sign_in_methods = _view(
    "sign_in_methods",
    "organization_id connection_id connection_type name since certificate_expires_at",
    """
SELECT connection.organization_id, connection.id AS connection_id, connection.connection_type, connection.name,
       connection.created_at AS since,
       (SELECT MIN(certificate.expires_at) FROM saml_certificates AS certificate
        WHERE certificate.connection_id = connection.id) AS certificate_expires_at
FROM connections AS connection
JOIN organizations AS workspace ON workspace.id = connection.organization_id AND workspace.deleted_by IS NULL
WHERE connection.deleted_by IS NULL AND connection.status = 'active'
""",
)
"""SSO connections that work now: one row for each active connection; none if a workspace does not use SSO.

`certificate_expires_at` is the first expiry of its SAML certificates, as far as WorkOS has sent events about them.
"""

member_permissions = _view(
    "member_permissions",
    "organization_id user_id permission",
    """
SELECT DISTINCT member.organization_id, member.user_id, permission.id AS permission
FROM workspace_members AS member
JOIN memberships AS membership ON membership.id = member.membership_id
CROSS JOIN mirror
CROSS JOIN {json_items}(membership.workos_roles) AS held
LEFT JOIN roles AS own ON own.id = member.organization_id || '/' || held.value
LEFT JOIN roles AS common ON common.id = held.value AND common.deleted_by IS NULL
  AND COALESCE(common.resource_type, 'organization') = 'organization'
-- An organization's own role comes before the environment's role with the same slug. If the organization deletes it,
-- members fall back to the environment's role, but only once their membership has been read or updated again. Until
-- then the slug still means the deleted role, which grants no permissions.
CROSS JOIN {json_items}(
    CASE WHEN own.resource_type <> 'organization' THEN NULL
         WHEN own.id IS NOT NULL AND own.deleted_by IS NULL THEN own.permissions
         WHEN own.id IS NULL OR own.event_at < membership.event_at THEN common.permissions END) AS granted
JOIN permissions AS permission ON permission.id = granted.value
WHERE permission.deleted_by IS NULL AND permission.resource_type = 'organization'
  AND EXISTS (SELECT 1 FROM {json_fields}(mirror.role_map) AS mapped WHERE mapped.key = held.value)
  AND EXISTS (SELECT 1 FROM {json_items}(mirror.listed_kinds) AS listed WHERE listed.value = 'permission')
""",
)
"""Permissions of the people in `workspace_members`: those of resource type `organization` that their roles grant.

A role that `ROLE_MAP` does not name grants no permissions. Empty until a full resync has listed permissions
(`models.access.permissions_of` distinguishes this from "no permissions").
"""


ROLE_OF = f"""
DECLARE
    found record;
BEGIN
    SELECT status.state, status.age_seconds, status.smallest_bound_seconds, status.complete_to, status.error,
           member.role,
           (SELECT min(uncertain.event_id) FROM uncertain_access AS uncertain
            WHERE uncertain.organization_id IN ('', role_of.organization_id)
              AND uncertain.user_id IN ('', role_of.user_id)) AS event_id
    INTO found
    FROM mirror_status AS status
    LEFT JOIN workspace_members AS member
      ON member.organization_id = role_of.organization_id AND member.user_id = role_of.user_id;
    -- NaN is greater than any number.
    IF max_staleness IS NULL OR NOT max_staleness BETWEEN found.smallest_bound_seconds AND {LARGEST_BOUND:.0f} THEN
        RAISE EXCEPTION 'max_staleness must be from % to {LARGEST_BOUND:.0f} seconds', found.smallest_bound_seconds
            USING ERRCODE = 'invalid_parameter_value';
    ELSIF found.state <> 'current' THEN
        RAISE EXCEPTION 'stale: the mirror is not filled yet' USING ERRCODE = 'WS001';
    ELSIF found.age_seconds IS NULL OR NOT found.age_seconds BETWEEN 0 AND max_staleness THEN
        RAISE EXCEPTION 'stale: complete up to %', COALESCE(found.complete_to::text, 'no time yet')
            USING ERRCODE = 'WS001', DETAIL = COALESCE(found.error, '');
    ELSIF found.event_id = '{EXPIRED_EVENTS}' THEN
        RAISE EXCEPTION 'stale: events expired at WorkOS before they were read; run: workos-sync resync'
            USING ERRCODE = 'WS001';
    ELSIF found.event_id IS NOT NULL THEN
        RAISE EXCEPTION 'stale: event % was not applied and may have changed this', found.event_id
            USING ERRCODE = 'WS001';
    END IF;
    RETURN found.role;
END
"""  # noqa: S608 - our own constants
"""The body of the PostgreSQL function `role_of`: `models.access.role_of` with a bound, in seconds, for SQL.

Returns the role, or null for no access. Raises WS001 if the answer may be older than the bound, and
`invalid_parameter_value` for a bound that cannot be met.
"""

# The caller's search path may differ, so the function keeps the one with which it was created.
CREATE_ROLE_OF = (
    "CREATE OR REPLACE FUNCTION role_of(user_id text, organization_id text, max_staleness double precision)"
    f" RETURNS text LANGUAGE plpgsql SET search_path FROM CURRENT AS $${ROLE_OF}$$"
)


def update_views(tx: Connection) -> list[str]:
    """Create missing views and replace those whose SQL has changed; return the names of both.

    On PostgreSQL, also creates or replaces the function `role_of`, and a replaced view keeps its privileges. Other
    views are not touched.
    """
    on_sqlite = tx.dialect.name == "sqlite"
    existing = set(inspect(tx).get_view_names())
    updated = []
    for name, view in VIEWS.items():
        query = view.query.format_map(FUNCTIONS[tx.dialect.name])
        if name in existing and _is_current(tx, name, query):
            continue
        if name in existing and on_sqlite:
            tx.exec_driver_sql(f"DROP VIEW {name}")
        tx.exec_driver_sql(f"CREATE {'' if on_sqlite else 'OR REPLACE '}VIEW {name} AS {query}")
        updated.append(name)
    if not on_sqlite:
        body = text("SELECT prosrc FROM pg_proc WHERE oid = to_regprocedure('role_of(text, text, double precision)')")
        if tx.execute(body).scalar_one_or_none() != ROLE_OF:
            tx.exec_driver_sql(CREATE_ROLE_OF.replace("%", "%%"))
            updated.append("role_of")
    return updated


def postgresql_statements() -> list[str]:
    """Return the statements that create or replace all views and the function `role_of` on PostgreSQL."""
    queries = {name: view.query.format_map(FUNCTIONS["postgresql"]) for name, view in VIEWS.items()}
    return [*(f"CREATE OR REPLACE VIEW {name} AS {query}" for name, query in queries.items()), CREATE_ROLE_OF]


def _is_current(tx: Connection, name: str, query: str) -> bool:
    """Return whether a view has this query."""
    if tx.dialect.name == "sqlite":
        stored = text("SELECT sql FROM sqlite_master WHERE type = 'view' AND name = :name")
        return bool(tx.execute(stored, {"name": name}).scalar_one() == f"CREATE VIEW {name} AS {query}")
    # PostgreSQL stores only the parsed query. To compare, create a second view from the new query.
    tx.exec_driver_sql(f"CREATE VIEW {name}_new AS {query}")
    same = "SELECT pg_get_viewdef(CAST(:old AS regclass)) = pg_get_viewdef(CAST(:new AS regclass))"
    is_same: bool = tx.execute(text(same), {"old": name, "new": f"{name}_new"}).scalar_one()
    tx.exec_driver_sql(f"DROP VIEW {name}_new")
    return is_same
