"""`legacy_verified` domains count without a setting; `lift` is called `unblock`, and `odd` is called `invalid`.

Scans of large tables come first: they take no lock that others wait for. Then come the locks, all together, and only
steps that take milliseconds. The revision leaves the views empty; `models.migrate` updates them in the same
transaction.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from alembic import context, op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
CHANGES = sa.table(
    "changes",
    *(sa.column(name) for name in ("id", "kind", "object_id", "organization_id", "cause", "cause_id")),
    sa.column("before", JSON),
    sa.column("after", JSON),
)
CHANGES_LOCK = 0x776F_0002
LOCK_MS = 500
"""Less than PostgreSQL's deadlock_timeout: this waits for others, and nobody is cancelled because of it."""
MAX_LOCK_TRIES = 120
VIEWS = (
    *("workspace_members", "workspaces", "mirror_status"),
    *("auto_join_domains", "auto_join_blocks", "sign_in_methods"),
)
COLUMNS = """
    SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute
    WHERE attrelid = CAST(:view AS regclass) AND attnum > 0 ORDER BY attnum"""
WHY = "AUTO_JOIN_LEGACY_VERIFIED was false: its legacy_verified domains let nobody join"

Row = sa.RowMapping
Shown = dict[str, Any]


def upgrade() -> None:
    if context.is_offline_mode():  # the database is new
        _drop_views()
    else:
        _rewrite_rows(op.get_bind())
    op.rename_table("lifted_blocks", "unblocked_memberships")
    if op.get_context().dialect.name == "postgresql":
        op.execute("ALTER INDEX pk_lifted_blocks RENAME TO pk_unblocked_memberships")
    op.execute("ALTER TABLE listings RENAME COLUMN odd TO invalid")
    op.drop_column("mirror", "legacy_verified")
    op.drop_column("mirror", "recheck_after")


def _rewrite_rows(tx: sa.Connection) -> None:
    last = tx.execute(sa.select(sa.func.coalesce(sa.func.max(CHANGES.c.id), 0))).scalar_one()
    rewritten = _rewrite_decisions(tx, CHANGES.c.id <= last, {})
    tx.exec_driver_sql("UPDATE drift SET finding = 'invalid' WHERE finding = 'odd'")
    _take_locks(tx)
    # Rows written meanwhile. Ids of `changes` grow in commit order.
    _rewrite_decisions(tx, CHANGES.c.id > last, rewritten)
    tx.exec_driver_sql(
        "UPDATE drift SET finding = 'invalid' WHERE finding = 'odd' "
        "AND run_id IN (SELECT id FROM runs WHERE finished_at IS NULL)"
    )
    if not tx.exec_driver_sql("SELECT legacy_verified FROM mirror").scalar_one():
        number = _turn_auto_join_off(tx)
        print(f"auto-join is now off for {number} workspaces: {WHY}")  # noqa: T201 - `migrate` shows it to the operator
    _note_domain_states(tx)


def _drop_views() -> None:
    for view in VIEWS:
        op.execute(f"DROP VIEW {view}")


def _take_locks(tx: sa.Connection) -> None:
    """Empty the views and take every lock. After a lock timeout, release all of them, let others pass, and retry."""
    if tx.dialect.name != "postgresql":
        _drop_views()
        return
    timeout = tx.exec_driver_sql("SHOW lock_timeout").scalar_one()
    for left in reversed(range(MAX_LOCK_TRIES)):
        try:
            with tx.begin_nested():
                tx.exec_driver_sql(f"SET LOCAL lock_timeout = {LOCK_MS}")
                for view in VIEWS:  # not dropped, which would lose what was granted on them
                    columns = tx.execute(sa.text(COLUMNS), {"view": view})
                    nothing = ", ".join(f"CAST(NULL AS {type}) AS {name}" for name, type in columns)
                    tx.exec_driver_sql(f"CREATE OR REPLACE VIEW {view} AS SELECT {nothing} WHERE false")
                tx.exec_driver_sql("LOCK TABLE mirror, listings, lifted_blocks")
                tx.execute(sa.select(sa.func.pg_advisory_xact_lock(CHANGES_LOCK)))
                tx.exec_driver_sql(f"SET LOCAL lock_timeout = '{timeout}'")
        except sa.exc.OperationalError:  # rolling back to the savepoint released every lock
            if not left:
                raise
            time.sleep(LOCK_MS / 1000)
        else:
            return


def _rewrite_decisions(tx: sa.Connection, which: Any, latest: dict[Any, Shown]) -> dict[Any, Shown]:
    """Rewrite changes of operators' decisions: the new words, every column, `before` as the previous `after`.

    Args:
        tx: the migration's transaction.
        which: the condition for the rows.
        latest: the last `after` of each object, from earlier rows.

    Returns:
        `latest`, with these rows.
    """
    columns: dict[str, Callable[[Row], Shown]] = {"join": _join, "workspace_settings": _workspace_settings}
    query = sa.select(CHANGES).where(CHANGES.c.kind.in_(columns), which).order_by(CHANGES.c.id)
    for row in tx.execute(query).mappings().all():
        key = row["kind"], row["object_id"], row["organization_id"]
        before, after = latest.get(key), columns[row["kind"]](row)
        if before is None and row["kind"] == "workspace_settings":
            before = {"why": None} | row["before"]
        latest[key] = after
        tx.execute(sa.update(CHANGES).where(CHANGES.c.id == row["id"]).values(before=before, after=after))
    return latest


def _join(row: Row) -> Shown:
    why = row["after"]["why"]
    if row["after"]["state"] == "lifted":
        return {"state": "unblocked", "reasons": row["before"]["reasons"], "why": why}
    return {"state": "blocked", "reasons": [f"by {row['cause_id']}: {why}"], "why": why}


def _workspace_settings(row: Row) -> Shown:
    after: Shown = row["after"]
    return after


def _turn_auto_join_off(tx: sa.Connection) -> int:
    """Turn auto-join off for every workspace with a `legacy_verified` domain; return for how many it was on.

    It is a switch of the whole workspace, so nobody joins by its `verified` domains any more either, until an operator
    turns it on again: less access rather than more. A workspace that is not known here yet is taken for a live one.
    """
    holders = """
        SELECT DISTINCT claim.organization_id, own.auto_join, own.default_role, own.why
        FROM domains AS claim
        LEFT JOIN organizations AS workspace ON workspace.id = claim.organization_id
        LEFT JOIN workspace_settings AS own ON own.organization_id = claim.organization_id
        WHERE claim.verification = 'legacy_verified' AND claim.deleted_by IS NULL AND claim.organization_id IS NOT NULL
          AND workspace.deleted_by IS NULL AND COALESCE(own.auto_join, TRUE)
        ORDER BY claim.organization_id"""
    settings = sa.table(
        "workspace_settings",
        *(sa.column(name) for name in ("organization_id", "auto_join", "default_role", "who", "why")),
    )
    rows = tx.exec_driver_sql(holders).all()
    for id, _, default_role, why in rows:
        shown = {"auto_join": True, "default_role": default_role or "member", "why": why}
        off = {"auto_join": False, "default_role": default_role or "member", "why": WHY}
        tx.execute(sa.delete(settings).where(settings.c.organization_id == id))
        tx.execute(sa.insert(settings).values(organization_id=id, who="settings", **off))
        _add_change(tx, "workspace_settings", id, id, shown, off)
    return len(rows)


def _note_domain_states(tx: sa.Connection) -> None:
    """Note the states of domains that change because `legacy_verified` counts now."""
    claims = tx.exec_driver_sql(
        """
        SELECT claim.id, claim.created_at, claim.organization_id, claim.domain, claim.normalized, claim.verification,
               claim.reason, workspace.revision AS workspace_revision, noted.state, noted.reason AS noted_reason
        FROM domains AS claim
        LEFT JOIN organizations AS workspace ON workspace.id = claim.organization_id
        LEFT JOIN auto_joins AS noted ON noted.domain_id = claim.id
        WHERE claim.verification IN ('verified', 'legacy_verified') AND claim.deleted_by IS NULL
          AND workspace.deleted_by IS NULL
          AND (claim.verification = 'legacy_verified' OR claim.normalized IN (
            SELECT normalized FROM domains WHERE verification = 'legacy_verified' AND deleted_by IS NULL))
        ORDER BY claim.id"""
    )
    found = claims.mappings().all()
    holders: dict[str | None, set[str]] = {}
    for claim in found:
        if claim["normalized"] and claim["organization_id"]:
            holders.setdefault(claim["normalized"], set()).add(claim["organization_id"])
    names = ("domain_id", "domain", "organization_id", "state", "reason")
    noted = sa.table("auto_joins", *map(sa.column, names))
    for claim in found:
        state, reason = _state(claim, holders.get(claim["normalized"], set()))
        if (state, reason) == (claim["state"], claim["noted_reason"]):
            continue
        values = (claim["id"], claim["normalized"], claim["organization_id"], state, reason)
        tx.execute(sa.delete(noted).where(noted.c.domain_id == claim["id"]))
        tx.execute(sa.insert(noted).values(dict(zip(names, values, strict=True))))
        before = _shown(claim) | {"auto_join": claim["state"], "auto_join_reason": claim["noted_reason"]}
        after = before | {"auto_join": state, "auto_join_reason": reason}
        _add_change(tx, "domain", claim["id"], claim["organization_id"], before, after)


def _state(claim: Row, holders: set[str]) -> tuple[str, str | None]:
    """Return the state of a verified domain, which these workspaces hold, and its reason."""
    if claim["workspace_revision"] is None:
        return "pending", "the workspace is not in the mirror yet"
    rivals = sorted(holders - {claim["organization_id"]})
    return ("conflicted", f"also verified by {', '.join(rivals)}") if rivals else ("verified", None)


def _shown(claim: Row) -> Shown:
    """Return a live domain as `changes` shows it."""
    created_at = claim["created_at"]
    if isinstance(created_at, str):
        created_at = datetime.fromisoformat(created_at)
    created_at = created_at and created_at.astimezone(UTC).isoformat()
    names = ("organization_id", "domain", "normalized", "verification", "reason")
    return {"state": "active", "created_at": created_at, **{name: claim[name] for name in names}}


def _add_change(
    tx: sa.Connection, kind: str, id: str, organization_id: str | None, before: Shown, after: Shown
) -> None:
    row = {"kind": kind, "object_id": id, "organization_id": organization_id, "before": before, "after": after}
    tx.execute(sa.insert(CHANGES).values(**row, cause="settings", cause_id="AUTO_JOIN_LEGACY_VERIFIED"))
