"""Who has access to which workspace, and which domains auto-join, each with the reason."""

from sqlalchemy import ColumnElement, Connection, RowMapping, select

from models.tables import AutoJoinMode, AutoJoinState, Change, DeletedBy, Mirror, PublicDomain, WorkspaceSettings
from models.types import Record
from models.views import auto_join_domains, workspace_members
from worker.kinds.domain import Domain
from worker.kinds.membership import MEMBERSHIP, Membership
from worker.kinds.organization import Organization
from worker.kinds.user import User
from worker.mirror import auto_join

MAX_CHANGES = 500
"""Maximum number of a membership's changes searched for the cause of its access and role."""

Row = RowMapping


def access_of(tx: Connection, *which: ColumnElement[bool]) -> list[Record]:
    """Return a row for each membership: whether it gives access now, the reason, since when and the cause.

    Args:
        tx: a transaction.
        which: conditions on `Membership`.

    Returns:
        rows sorted by workspace name and membership id. `since` and `role_since` are aware (UTC) and, like `cause` and
        `role_cause`, None if the change is no longer kept. `role` is None without access.
    """
    joined = (
        select(
            *(Membership.id, Membership.organization_id, Membership.user_id, Membership.status, Membership.role),
            *(Membership.workos_role, Membership.deleted_by),
            Organization.name,
            Organization.revision.label("organization_known"),
            Organization.deleted_by.label("organization_deleted_by"),
            User.revision.label("user_known"),
            User.deleted_by.label("user_deleted_by"),
        )
        .outerjoin(Organization, Organization.id == Membership.organization_id)
        .outerjoin(User, User.id == Membership.user_id)
        .where(*which)
        .order_by(Organization.name, Membership.id)
    )
    memberships = tx.execute(joined).mappings().all()
    with_access = set(
        tx.execute(
            select(workspace_members.c.membership_id).where(
                workspace_members.c.user_id.in_({row["user_id"] for row in memberships})
            )
        ).scalars()
    )
    return [
        {
            "organization_id": row["organization_id"],
            "workspace_name": row["name"],
            "membership_id": row["id"],
            "user_id": row["user_id"],
            "access": row["id"] in with_access,
            "role": row["role"] if row["id"] in with_access else None,
            "workos_role": row["workos_role"],
            "why": "active membership; neither the person nor the workspace is deleted"
            if row["id"] in with_access
            else _why_not(row),
            **_causes(tx, row["id"]),
        }
        for row in memberships
    ]


def _why_not(row: Row) -> str:
    """Return which condition of the view `workspace_members` a membership does not meet."""
    deleted = {
        DeletedBy.EVENT: "was deleted in WorkOS",
        DeletedBy.RESYNC: "no longer exists in WorkOS (found by a resync)",
    }
    status = f"is {row['status']}" if row["status"] else "has no status"
    reasons = {
        f"the membership {deleted.get(row['deleted_by'])}": row["deleted_by"],
        f"the person {deleted.get(row['user_deleted_by'])}": row["user_deleted_by"],
        f"the workspace {deleted.get(row['organization_deleted_by'])}": row["organization_deleted_by"],
        f"the membership {status}": row["status"] != "active",
        "the person is not in the mirror yet": not row["user_known"],
        "the workspace is not in the mirror yet": not row["organization_known"],
    }
    newer = "a newer membership of the same person in this workspace takes precedence"
    return next((reason for reason, applies in reasons.items() if applies), newer)


def _causes(tx: Connection, membership_id: str) -> Record:
    """Return when and why a membership last became active or inactive, and last got its role."""
    about = (Change.kind == MEMBERSHIP.name, Change.object_id == membership_id)
    newest_first = select(Change.__table__).where(*about).order_by(Change.id.desc()).limit(MAX_CHANGES)
    changes = tx.execute(newest_first).mappings().all()
    status_change = next((row for row in changes if _active(row["before"]) != _active(row["after"])), None)
    role_change = next((row for row in changes if (row["before"] or {}).get("role") != row["after"]["role"]), None)
    return {
        "since": status_change["at"] if status_change else None,
        "cause": f"{status_change['cause']} {status_change['cause_id']}" if status_change else None,
        "role_since": role_change["at"] if role_change else None,
        "role_cause": f"{role_change['cause']} {role_change['cause_id']}" if role_change else None,
    }


def _active(shown: Record | None) -> bool:
    return bool(shown) and (shown or {}).get("state") == "active" and (shown or {}).get("status") == "active"


def domain_states(tx: Connection, *which: ColumnElement[bool]) -> list[Record]:
    """Return a row for each domain: its auto-join state, whether people join by it now, and the reason.

    Args:
        tx: a transaction.
        which: conditions on `Domain`.

    Returns:
        rows sorted by domain name and id.
    """
    mirror = tx.execute(select(Mirror.__table__)).one()
    selected = set(tx.execute(select(Domain.id).where(*which)).scalars())
    found = auto_join.claims(tx, selected)
    statuses = auto_join.auto_join_statuses(found)
    view = auto_join_domains.c
    claimed = {claim.normalized for claim in found}
    joining = {
        (domain, owner)
        for domain, owner in tx.execute(select(view.domain, view.organization_id).where(view.domain.in_(claimed)))
    }
    states = []
    for claim in found:
        if claim.id not in selected:
            continue
        state, reason = statuses[claim.id]
        on = state is AutoJoinState.VERIFIED and (claim.normalized, claim.organization_id) in joining
        why_not = WHY_NOT[state].format(reason or "") or _off(tx, claim, mirror.auto_join)
        states.append(
            {
                "id": claim.id,
                "domain": claim.domain,
                "organization_id": claim.organization_id,
                "verification": claim.verification,
                "state": state.value,
                "auto_join": on,
                "why": "verified by this workspace only" if on else why_not,
            }
        )
    return sorted(states, key=lambda row: (str(row["domain"]), str(row["id"])))


WHY_NOT = {
    AutoJoinState.PENDING: "{}",
    AutoJoinState.VERIFIED: "",
    AutoJoinState.FAILED: "not verified: {}",
    AutoJoinState.CONFLICTED: "in conflict: {}",
    AutoJoinState.REVOKED: "{}",
}
"""Why a domain in each state does not auto-join. Empty for a verified one: `_off` finds the reason."""


def _off(tx: Connection, claim: auto_join.Claim, mode: AutoJoinMode) -> str:
    """Return why nobody joins by a domain that exactly one workspace has verified."""
    reasons = {
        "not a valid domain name": claim.normalized is None,
        "domain of a public mail provider": _is_public(tx, claim.normalized),
        "AUTO_JOIN is off": mode == AutoJoinMode.OFF,
    }
    reason = next((reason for reason, applies in reasons.items() if applies), None)
    return reason or _switched_off(tx, claim.organization_id or "")


def _switched_off(tx: Connection, organization_id: str) -> str:
    row = tx.execute(
        select(WorkspaceSettings.who, WorkspaceSettings.why).where(WorkspaceSettings.organization_id == organization_id)
    ).one_or_none()
    return f"switched off by {row.who}: {row.why}" if row else "not in effect yet"


def _is_public(tx: Connection, domain: str | None) -> bool:
    return tx.execute(select(PublicDomain.domain).where(PublicDomain.domain == domain)).one_or_none() is not None
