"""Large inboxes, made by SQL."""

from sqlalchemy import Engine, text

from models.database import write_transaction
from tests.benchmarks.access import PER_ORGANIZATION, SERIES
from tests.benchmarks.servers import SQLITE

AGO = {
    "postgresql": "now() - n * interval '1 second'",
    "sqlite": "strftime('%Y-%m-%dT%H:%M:%f000+00:00', 'now', '-' || n || ' seconds')",
}
COLUMNS = (
    "id, type, source, body, received_at, last_delivered_at, webhook_at, due_at, processed_at, occurred_at, status, "
    "outcome, error, fingerprint, kind, object_id, organization_id"
)
VALUES = (
    "'event_past_' || n, "
    "CASE n % 3 WHEN 0 THEN 'user.updated' ELSE 'organization_membership.updated' END, 'webhook', "
    "CASE WHEN n < :most / 3 THEN {body} END, "  # retention drops payloads after a third of the time
    "{ago}, {ago}, {ago}, {ago}, {ago}, {ago}, "
    "CASE WHEN n % 10000 = 0 THEN 'failed' ELSE 'done' END, "
    "CASE WHEN n % 10000 <> 0 THEN 'applied' END, CASE WHEN n % 10000 = 0 THEN 'the data has no email' END, "
    "CASE WHEN n % 10000 = 0 THEN 'f' || (n / 10000) % 7 END, "
    "CASE n % 3 WHEN 0 THEN 'user' ELSE 'membership' END, "
    "CASE n % 3 WHEN 0 THEN 'user_' ELSE 'om_' END || (n % :members), "
    "CASE WHEN n % 3 <> 0 THEN 'org_' || ((n % :members) / {each}) END"
)
BODY = {"postgresql": "repeat('x', 500)::bytea", "sqlite": "CAST(printf('%.500c', 'x') AS BLOB)"}


def fill_inbox(engine: Engine, number: int, members: int) -> None:
    """Insert `number` past events, one a second, about the people that `access.fill` made."""
    kind = engine.dialect.name
    values = VALUES.format(body=BODY[kind], ago=AGO[kind], each=PER_ORGANIZATION)
    sql = f"INSERT INTO events ({COLUMNS}) SELECT {values} FROM ({SERIES[kind]}) AS t"  # noqa: S608 - our own words
    with write_transaction(engine) as tx:
        tx.execute(text(sql), {"most": number, "members": members})
        tx.execute(text("ANALYZE"))


def settle(engine: Engine) -> None:
    """Run the maintenance that the database would otherwise start during a measurement."""
    if engine.dialect.name != SQLITE:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM (ANALYZE)"))
            connection.execute(text("CHECKPOINT"))


LISTS = {
    # One workspace has as many members as `number`.
    "UPDATE memberships SET organization_id = 'org_0' WHERE id IN": "(SELECT 'om_' || n FROM ({series}) AS t)",
    "INSERT INTO events (id, type, source, received_at, last_delivered_at, webhook_at, due_at, status, attempts, "
    "error, fingerprint, kind, object_id, organization_id)": "SELECT 'event_failed_' || n, "
    "'organization_membership.updated', 'webhook', {ago}, {ago}, {ago}, {ago}, 'failed', 1, 'no email', 'f' || n % 7, "
    "'membership', 'om_' || n, 'org_' || (n / {each}) FROM ({series}) AS t",
    "INSERT INTO runs (id, task, requested_by, status, phase, created_at, finished_at)": "SELECT 'run' || n, 'resync', "
    "'clock', 'done', 'none', {ago}, {ago} FROM ({series}) AS t",
    "INSERT INTO drift (run_id, kind, object_id, organization_id, finding, action)": "SELECT 'run0', "
    "CASE n % 2 WHEN 0 THEN 'user' ELSE 'membership' END, CASE n % 2 WHEN 0 THEN 'user_' ELSE 'om_' END || n, "
    "'org_' || (n / {each}), CASE n % 3 WHEN 0 THEN 'different' ELSE 'missing' END, 'repaired' FROM ({all}) AS t",
    "INSERT INTO audit (at, who, via, action, kind, object_id, organization_id, reason)": "SELECT {ago}, CASE n % 5 "
    "WHEN 0 THEN 'bob' ELSE 'ann' END, 'page', 'block', 'user', 'user_' || n, 'org_' || (n / {each}), 'why' "
    "FROM ({all}) AS t",
    "INSERT INTO connections (id, organization_id, connection_type, name, status, revision, erased)": "SELECT "
    "'conn_' || n, 'org_' || n, 'OktaSAML', 'Okta', 'active', 1, FALSE FROM ({series}) AS t",
    "INSERT INTO hooks (name, cursor)": "VALUES ('sessions', 1)",
    "INSERT INTO hook_deliveries (hook, change_id, kind, object_id, status, attempts, error, fingerprint, "
    "attempted_at)": "SELECT 'sessions', n + 1, 'user', 'user_' || n, 'failed', 9, 'answered 50' || (n % 3), "
    "'f' || (n % 3), {ago} FROM ({series}) AS t",
}
"""Statement → what it writes."""


def fill_lists(engine: Engine, number: int, members: int) -> None:
    """Insert `number` failed events and deliveries, runs and connections, and `members` differences and audit rows."""
    kind = engine.dialect.name
    series = {"series": SERIES[kind].replace(":most", str(number)), "all": SERIES[kind].replace(":most", str(members))}
    with write_transaction(engine) as tx:
        for statement, rows in LISTS.items():
            tx.execute(text(f"{statement} {rows}".format(ago=AGO[kind], each=PER_ORGANIZATION, **series)))
        tx.execute(text("ANALYZE"))
