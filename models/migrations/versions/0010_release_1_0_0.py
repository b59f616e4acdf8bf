"""The schema of release 1.0.0, as the ten revisions before it made it.

The SQL is frozen: it imports nothing from `models`, whose tables go on changing. Where SQLite and PostgreSQL differ,
the text names a word of `WORDS`. A database that 1.0.0 migrated is at this revision already.
"""

from alembic import op

revision = "0010"
down_revision = None
branch_labels = None
depends_on = None

WORDS = {
    "sqlite": {
        "time": "TEXT",
        "json": "JSON",
        "bytes": "BLOB",
        "serial": "INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT",
        "now": "(strftime('%Y-%m-%dT%H:%M:%f000+00:00', 'now'))",
        "false": "0",
        "true": "1",
    },
    "postgresql": {
        "time": "TIMESTAMP WITH TIME ZONE",
        "json": "JSONB",
        "bytes": "BYTEA",
        "serial": "BIGSERIAL CONSTRAINT pk_changes PRIMARY KEY",
        "now": "now()",
        "false": "false",
        "true": "true",
    },
}
SCHEMA = """
CREATE TABLE auto_joins (
    domain_id TEXT NOT NULL, domain TEXT, organization_id TEXT, state TEXT NOT NULL, reason TEXT,
    since {time} DEFAULT {now} NOT NULL, CONSTRAINT pk_auto_joins PRIMARY KEY (domain_id)
);
CREATE INDEX ix_auto_joins_invalid ON auto_joins (state) WHERE domain IS NULL;
CREATE INDEX ix_auto_joins_state ON auto_joins (state);
CREATE TABLE batches (
    id TEXT NOT NULL, event_ids {json} NOT NULL, started_at {time}, CONSTRAINT pk_batches PRIMARY KEY (id)
);
CREATE TABLE changes (
    id {serial}, at {time} DEFAULT {now} NOT NULL, kind TEXT NOT NULL, object_id TEXT NOT NULL,
    organization_id TEXT, "before" {json}, "after" {json} NOT NULL, cause TEXT NOT NULL, cause_id TEXT NOT NULL
);
CREATE INDEX ix_changes_object_id_id ON changes (object_id, id);
CREATE INDEX ix_changes_organization_id_id ON changes (organization_id, id);
CREATE TABLE connections (
    organization_id TEXT, name TEXT, connection_type TEXT, status TEXT, domains {json}, id TEXT NOT NULL,
    created_at {time}, updated_at {time}, event_at {time}, event_id TEXT, deleted_by TEXT,
    revision INTEGER DEFAULT '0' NOT NULL, touched_at {time}, erased BOOLEAN DEFAULT {false} NOT NULL,
    CONSTRAINT pk_connections PRIMARY KEY (id)
);
CREATE INDEX ix_connections_organization_id ON connections (organization_id);
CREATE TABLE domains (
    organization_id TEXT, domain TEXT, normalized TEXT, verification TEXT, reason TEXT, id TEXT NOT NULL,
    created_at {time}, updated_at {time}, event_at {time}, event_id TEXT, deleted_by TEXT,
    revision INTEGER DEFAULT '0' NOT NULL, touched_at {time}, erased BOOLEAN DEFAULT {false} NOT NULL,
    CONSTRAINT pk_domains PRIMARY KEY (id)
);
CREATE INDEX ix_domains_normalized ON domains (normalized);
CREATE INDEX ix_domains_organization_id ON domains (organization_id);
CREATE TABLE drift (
    run_id TEXT NOT NULL, kind TEXT NOT NULL, object_id TEXT NOT NULL, organization_id TEXT,
    finding TEXT NOT NULL, fields {json}, action TEXT NOT NULL,
    CONSTRAINT pk_drift PRIMARY KEY (run_id, kind, object_id)
);
CREATE INDEX ix_drift_object_id ON drift (object_id);
CREATE TABLE events (
    id TEXT NOT NULL, type TEXT NOT NULL, source TEXT NOT NULL, body {bytes},
    received_at {time} DEFAULT {now} NOT NULL, deliveries INTEGER DEFAULT '1' NOT NULL,
    last_delivered_at {time} DEFAULT {now} NOT NULL, status TEXT DEFAULT 'pending' NOT NULL,
    due_at {time} DEFAULT {now} NOT NULL, attempts INTEGER DEFAULT '0' NOT NULL, outcome TEXT, decided_by TEXT,
    error TEXT, processed_at {time}, occurred_at {time}, kind TEXT, object_id TEXT, organization_id TEXT,
    webhook_at {time}, api_at {time}, fingerprint TEXT, replay_id TEXT, dismissed_by TEXT, dismissed_why TEXT,
    replays INTEGER DEFAULT '0' NOT NULL, partition_key SMALLINT DEFAULT '0' NOT NULL, traceback TEXT,
    CONSTRAINT pk_events PRIMARY KEY (id)
);
CREATE INDEX ix_events_api_at ON events (api_at);
CREATE INDEX ix_events_failed ON events (received_at) WHERE status = 'failed';
CREATE INDEX ix_events_gap ON events (api_at) WHERE webhook_at IS NULL;
CREATE INDEX ix_events_late ON events (api_at) WHERE webhook_at > api_at;
CREATE INDEX ix_events_object_id ON events (object_id) WHERE object_id IS NOT NULL;
CREATE INDEX ix_events_organization_id ON events (organization_id, received_at) WHERE organization_id IS NOT NULL;
CREATE INDEX ix_events_pending ON events (due_at, id) WHERE status = 'pending';
CREATE INDEX ix_events_pending_received_at ON events (received_at) WHERE status = 'pending';
CREATE INDEX ix_events_received_at ON events (received_at);
CREATE INDEX ix_events_replay_id ON events (replay_id) WHERE replay_id IS NOT NULL;
CREATE INDEX ix_events_type ON events (type, received_at);
CREATE TABLE hook_deliveries (
    hook TEXT NOT NULL, change_id BIGINT NOT NULL, kind TEXT NOT NULL, object_id TEXT NOT NULL,
    status TEXT DEFAULT 'pending' NOT NULL, attempts INTEGER DEFAULT '0' NOT NULL,
    due_at {time} DEFAULT {now} NOT NULL, error TEXT, traceback TEXT,
    CONSTRAINT pk_hook_deliveries PRIMARY KEY (hook, change_id)
);
CREATE INDEX ix_hook_deliveries_hook_status ON hook_deliveries (hook, status, due_at);
CREATE INDEX ix_hook_deliveries_object ON hook_deliveries (hook, kind, object_id, change_id);
CREATE TABLE hooks (
    name TEXT NOT NULL, cursor BIGINT NOT NULL, leased_until {time}, fence INTEGER DEFAULT '0' NOT NULL,
    delivered BIGINT DEFAULT '0' NOT NULL, delivered_at {time}, error TEXT,
    CONSTRAINT pk_hooks PRIMARY KEY (name)
);
CREATE TABLE join_searches (
    organization_id TEXT NOT NULL, domain TEXT NOT NULL, created_after {time}, "after" TEXT DEFAULT '' NOT NULL,
    cause TEXT NOT NULL, cause_id TEXT NOT NULL,
    CONSTRAINT pk_join_searches PRIMARY KEY (organization_id, domain)
);
CREATE TABLE joins (
    organization_id TEXT NOT NULL, user_id TEXT NOT NULL, domain TEXT, state TEXT DEFAULT 'pending' NOT NULL,
    reason TEXT, cause TEXT NOT NULL, cause_id TEXT NOT NULL, created_at {time} DEFAULT {now} NOT NULL,
    due_at {time} DEFAULT {now} NOT NULL, settled_at {time}, complete_from {time},
    claim INTEGER DEFAULT '0' NOT NULL, attempts INTEGER DEFAULT '0' NOT NULL, attempted_at {time},
    membership_id TEXT, error TEXT, CONSTRAINT pk_joins PRIMARY KEY (organization_id, user_id)
);
CREATE INDEX ix_joins_open ON joins (due_at) WHERE state IN ('pending', 'undo');
CREATE INDEX ix_joins_state ON joins (state);
CREATE INDEX ix_joins_user_id ON joins (user_id);
CREATE TABLE lifted_blocks (
    membership_id TEXT NOT NULL, who TEXT NOT NULL, why TEXT NOT NULL, at {time} DEFAULT {now} NOT NULL,
    CONSTRAINT pk_lifted_blocks PRIMARY KEY (membership_id)
);
CREATE TABLE listings (
    run_id TEXT NOT NULL, name TEXT NOT NULL, parent TEXT NOT NULL, "after" TEXT,
    state TEXT DEFAULT 'open' NOT NULL, odd BOOLEAN DEFAULT {false} NOT NULL, began_at {time},
    attempts INTEGER DEFAULT '0' NOT NULL, CONSTRAINT pk_listings PRIMARY KEY (run_id, name, parent)
);
CREATE TABLE memberships (
    organization_id TEXT, user_id TEXT, status TEXT, workos_roles {json}, workos_role TEXT, role TEXT,
    directory_managed BOOLEAN, id TEXT NOT NULL, created_at {time}, updated_at {time}, event_at {time},
    event_id TEXT, deleted_by TEXT, revision INTEGER DEFAULT '0' NOT NULL, touched_at {time},
    erased BOOLEAN DEFAULT {false} NOT NULL, CONSTRAINT pk_memberships PRIMARY KEY (id)
);
CREATE INDEX ix_memberships_organization_id_user_id ON memberships (organization_id, user_id);
CREATE INDEX ix_memberships_user_id ON memberships (user_id);
CREATE INDEX ix_memberships_workos_role ON memberships (workos_role) WHERE deleted_by IS NULL;
CREATE TABLE mirror (
    id INTEGER NOT NULL, role_map {json} NOT NULL, remap_after TEXT, backfilled_at {time}, complete_to {time},
    last_resync_at {time}, client_id TEXT, known_organizations {json}, backfill_from {time}, cursor TEXT,
    cursor_at {time}, inbox_to {time}, inbox_at {time}, event_types {json},
    changes_dropped_to BIGINT DEFAULT '0' NOT NULL, auto_join TEXT DEFAULT 'mirror' NOT NULL,
    auto_join_existing BOOLEAN DEFAULT {false} NOT NULL, legacy_verified BOOLEAN DEFAULT {true} NOT NULL,
    recheck_after TEXT, missing_joins INTEGER DEFAULT '0' NOT NULL, without_admin INTEGER DEFAULT '0' NOT NULL,
    CONSTRAINT pk_mirror PRIMARY KEY (id)
);
CREATE TABLE organizations (
    name TEXT, external_id TEXT, id TEXT NOT NULL, created_at {time}, updated_at {time}, event_at {time},
    event_id TEXT, deleted_by TEXT, revision INTEGER DEFAULT '0' NOT NULL, touched_at {time},
    erased BOOLEAN DEFAULT {false} NOT NULL, CONSTRAINT pk_organizations PRIMARY KEY (id)
);
CREATE TABLE public_domains (
    domain TEXT NOT NULL, CONSTRAINT pk_public_domains PRIMARY KEY (domain)
);
CREATE TABLE reads (
    kind TEXT NOT NULL, object_id TEXT NOT NULL, run_id TEXT DEFAULT '' NOT NULL, reason TEXT NOT NULL,
    due_at {time} DEFAULT {now} NOT NULL, attempts INTEGER DEFAULT '0' NOT NULL, error TEXT, event_id TEXT,
    CONSTRAINT pk_reads PRIMARY KEY (kind, object_id, run_id)
);
CREATE INDEX ix_reads_due_at ON reads (due_at);
CREATE TABLE roles (
    organization_id TEXT, slug TEXT, name TEXT, description TEXT, permissions {json}, id TEXT NOT NULL,
    created_at {time}, updated_at {time}, event_at {time}, event_id TEXT, deleted_by TEXT,
    revision INTEGER DEFAULT '0' NOT NULL, touched_at {time}, erased BOOLEAN DEFAULT {false} NOT NULL,
    CONSTRAINT pk_roles PRIMARY KEY (id)
);
CREATE INDEX ix_roles_organization_id ON roles (organization_id);
CREATE TABLE runs (
    id TEXT NOT NULL, task TEXT NOT NULL, organization_id TEXT, dry_run BOOLEAN DEFAULT {false} NOT NULL,
    approves TEXT, requested_by TEXT NOT NULL, status TEXT DEFAULT 'running' NOT NULL,
    phase TEXT DEFAULT 'list' NOT NULL, created_at {time} DEFAULT {now} NOT NULL, finished_at {time},
    leased_until {time}, fence INTEGER DEFAULT '0' NOT NULL, calls INTEGER DEFAULT '0' NOT NULL, error TEXT,
    selection {json}, reason TEXT, "after" TEXT, total INTEGER, done INTEGER DEFAULT '0' NOT NULL,
    skipped INTEGER DEFAULT '0' NOT NULL, CONSTRAINT pk_runs PRIMARY KEY (id)
);
CREATE INDEX ix_runs_created_at ON runs (created_at);
CREATE TABLE seen (
    run_id TEXT NOT NULL, kind TEXT NOT NULL, object_id TEXT NOT NULL,
    CONSTRAINT pk_seen PRIMARY KEY (run_id, kind, object_id)
);
CREATE TABLE ticks (
    name TEXT NOT NULL, at {time} NOT NULL, CONSTRAINT pk_ticks PRIMARY KEY (name)
);
CREATE TABLE users (
    email TEXT, email_verified BOOLEAN, first_name TEXT, last_name TEXT, id TEXT NOT NULL, created_at {time},
    updated_at {time}, event_at {time}, event_id TEXT, deleted_by TEXT, revision INTEGER DEFAULT '0' NOT NULL,
    touched_at {time}, erased BOOLEAN DEFAULT {false} NOT NULL, email_normalized TEXT, email_domain TEXT,
    CONSTRAINT pk_users PRIMARY KEY (id)
);
CREATE INDEX ix_users_email ON users (email);
CREATE INDEX ix_users_email_domain_id ON users (email_domain, id);
CREATE INDEX ix_users_email_normalized ON users (email_normalized);
CREATE TABLE workspace_settings (
    organization_id TEXT NOT NULL, auto_join BOOLEAN, default_role TEXT, who TEXT NOT NULL, why TEXT NOT NULL,
    at {time} DEFAULT {now} NOT NULL, CONSTRAINT pk_workspace_settings PRIMARY KEY (organization_id)
);
CREATE VIEW workspace_members AS
SELECT m.organization_id, o.name AS workspace_name, m.user_id, u.email, m.role, m.workos_role, m.status,
       m.id AS membership_id, m.created_at AS since
FROM memberships AS m
JOIN organizations AS o ON o.id = m.organization_id AND o.deleted_by IS NULL
JOIN users AS u ON u.id = m.user_id AND u.deleted_by IS NULL
WHERE m.deleted_by IS NULL AND m.status = 'active' AND NOT EXISTS (
    SELECT 1 FROM memberships AS n
    WHERE n.organization_id = m.organization_id AND n.user_id = m.user_id
      AND n.deleted_by IS NULL AND n.status = 'active' AND (n.created_at, n.id) > (m.created_at, m.id));
CREATE VIEW workspaces AS
SELECT o.id AS organization_id, o.name, o.external_id,
       CASE WHEN o.deleted_by IS NULL THEN 'active' ELSE 'deleted' END AS state, o.created_at, o.updated_at
FROM organizations AS o;
CREATE VIEW mirror_status AS
SELECT CASE WHEN m.backfilled_at IS NULL THEN 'backfilling' ELSE 'current' END AS state,
       m.complete_to, m.last_resync_at AS last_resync
FROM mirror AS m;
CREATE VIEW auto_join_domains AS
SELECT d.normalized AS domain, d.organization_id, COALESCE(s.default_role, 'member') AS default_role,
       MIN(d.created_at) AS since
FROM domains AS d
JOIN mirror AS w ON w.auto_join <> 'off'
JOIN organizations AS o ON o.id = d.organization_id AND o.deleted_by IS NULL
LEFT JOIN workspace_settings AS s ON s.organization_id = d.organization_id
WHERE d.deleted_by IS NULL AND (d.verification = 'verified' OR d.verification = 'legacy_verified' AND w.legacy_verified)
  AND COALESCE(s.auto_join, TRUE)
  AND d.normalized IS NOT NULL
  AND NOT EXISTS (SELECT 1 FROM public_domains AS f WHERE f.domain = d.normalized)
  AND NOT EXISTS (
    SELECT 1 FROM domains AS e
    LEFT JOIN organizations AS p ON p.id = e.organization_id
    WHERE e.normalized = d.normalized AND e.organization_id <> d.organization_id AND p.deleted_by IS NULL
      AND e.deleted_by IS NULL
      AND (e.verification = 'verified' OR e.verification = 'legacy_verified' AND w.legacy_verified))
GROUP BY d.normalized, d.organization_id, s.default_role;
CREATE VIEW auto_join_blocks AS
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
WHERE j.state IN ('blocked', 'undone');
CREATE VIEW sign_in_methods AS
SELECT c.organization_id, c.id AS connection_id, c.connection_type, c.name, c.created_at AS since
FROM connections AS c
JOIN organizations AS o ON o.id = c.organization_id AND o.deleted_by IS NULL
WHERE c.deleted_by IS NULL AND c.status = 'active';
INSERT INTO mirror (id, role_map, recheck_after) VALUES (1, '{{"admin": "admin", "member": "member"}}', '');
"""


def upgrade() -> None:
    for statement in SCHEMA.format(**WORDS[op.get_context().dialect.name]).split(";\n"):
        if statement.strip():
            op.execute(statement.replace(":", "\\:"))  # no parameters
