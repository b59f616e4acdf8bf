"""How people and domains stand: who may enter which workspace, which domains auto-join, and if not, why not."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, RowMapping, select

from models.tables import Change, Domain, Kind, Membership, Organization, PublicDomain, User
from models.views import auto_join_domains, workspace_members

MOST_CHANGES = 500
"""Of a membership, looked through for its cause."""
VERIFIED = ("verified", "legacy_verified")

Row = RowMapping


def accesses(tx: Connection, *which: Any) -> list[dict[str, Any]]:
    """Return, of memberships, whether they give access now, and if not why not; since when, and by which cause."""
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
    found = tx.execute(joined).mappings().all()
    entered = set(
        tx.execute(
            select(workspace_members.c.membership_id).where(
                workspace_members.c.user_id.in_({row["user_id"] for row in found})
            )
        ).scalars()
    )
    return [
        {
            "organization_id": row["organization_id"],
            "workspace_name": row["name"],
            "membership_id": row["id"],
            "user_id": row["user_id"],
            "access": row["id"] in entered,
            "role": row["role"] if row["id"] in entered else None,
            "workos_role": row["workos_role"],
            "why": "an active membership of a live person in a live workspace"
            if row["id"] in entered
            else _why_not(row),
            **_causes(tx, row["id"]),
        }
        for row in found
    ]


def _why_not(row: Row) -> str:
    gone = {"event": "deleted in WorkOS", "resync": "a resync found it gone"}
    reasons = {
        f"the membership: {gone.get(row['deleted_by'])}": row["deleted_by"],
        f"the person: {gone.get(row['user_deleted_by'])}": row["user_deleted_by"],
        f"the workspace: {gone.get(row['organization_deleted_by'])}": row["organization_deleted_by"],
        f"the membership is {row['status'] or 'of no known status'}": row["status"] != "active",
        "the person is not known here yet": not row["user_known"],
        "the workspace is not known here yet": not row["organization_known"],
    }
    newer = "a newer membership of the same person in this workspace counts"
    return next((reason for reason, holds in reasons.items() if holds), newer)


def _causes(tx: Connection, membership_id: str) -> dict[str, Any]:
    """Return when and by what a membership last became active, or ceased to be, and last got its role."""
    mine = (Change.kind == Kind.MEMBERSHIP, Change.object_id == membership_id)
    newest_first = select(Change.__table__).where(*mine).order_by(Change.id.desc()).limit(MOST_CHANGES)
    changes = tx.execute(newest_first).mappings().all()
    turned = next((row for row in changes if _active(row["before"]) != _active(row["after"])), None)
    ranked = next((row for row in changes if (row["before"] or {}).get("role") != row["after"]["role"]), None)
    return {
        "since": turned["at"] if turned else None,
        "cause": f"{turned['cause']} {turned['cause_id']}" if turned else None,
        "role_since": ranked["at"] if ranked else None,
        "role_cause": f"{ranked['cause']} {ranked['cause_id']}" if ranked else None,
    }


def _active(shown: Mapping[str, Any] | None) -> bool:
    return bool(shown) and (shown or {}).get("state") == "active" and (shown or {}).get("status") == "active"


def domain_states(tx: Connection, *which: Any) -> list[dict[str, Any]]:
    """Return domains with whether they auto-join now, and if not why not."""
    joined = (
        select(Domain.__table__, Organization.name.label("workspace_name"), Organization.deleted_by.label("gone"))
        .outerjoin(Organization, Organization.id == Domain.organization_id)
        .where(*which)
        .order_by(Domain.domain, Domain.id)
    )
    rows = tx.execute(joined).mappings().all()
    names = {row["normalized"] for row in rows}
    view = auto_join_domains.c
    joining = {
        (domain, owner)
        for domain, owner in tx.execute(select(view.domain, view.organization_id).where(view.domain.in_(names)))
    }
    return [
        {
            "id": row["id"],
            "domain": row["domain"],
            "organization_id": row["organization_id"],
            "verification": row["verification"],
            "auto_join": (on := _verified(row) and (row["normalized"], row["organization_id"]) in joining),
            "why": "verified, by this workspace only" if on else _why_off(tx, row),
        }
        for row in rows
    ]


def _verified(row: Row) -> bool:
    return row["deleted_by"] is None and row["verification"] in VERIFIED


def _why_off(tx: Connection, row: Row) -> str:
    reasons = {
        "the domain is deleted": row["deleted_by"] is not None,
        "the workspace is deleted": row["gone"] is not None,
        f"not verified: {row['reason'] or row['verification'] or 'WorkOS says no state'}": not _verified(row),
        "it is no domain name": row["normalized"] is None,
        "a public mail provider: its domain is nobody's own": _is_public(tx, row["normalized"]),
    }
    reason = next((reason for reason, holds in reasons.items() if holds), None)
    return reason or _conflict(tx, row) or "the workspace is not known here yet"


def _is_public(tx: Connection, domain: str | None) -> bool:
    return tx.execute(select(PublicDomain.domain).where(PublicDomain.domain == domain)).one_or_none() is not None


def _conflict(tx: Connection, row: Row) -> str | None:
    rivals = (
        select(Domain.organization_id)
        .outerjoin(Organization, Organization.id == Domain.organization_id)
        .where(
            *(Domain.normalized == row["normalized"], Domain.organization_id != row["organization_id"]),
            *(Domain.deleted_by.is_(None), Domain.verification.in_(VERIFIED)),
            Organization.deleted_by.is_(None),
        )
    )
    others = sorted(str(other) for other in tx.execute(rivals.distinct()).scalars())
    return f"in conflict: verified by {', '.join(others)} too" if others else None
