"""How people and domains stand: who may enter which workspace, which domains auto-join, and if not, why not."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, RowMapping, select

from models.tables import (
    AutoJoinState,
    Change,
    Domain,
    Kind,
    Membership,
    Mirror,
    Organization,
    PublicDomain,
    User,
    WorkspaceSettings,
)
from models.views import auto_join_domains, workspace_members
from worker.mirror import auto_join

MAX_CHANGES = 500
"""Of a membership, looked through for its cause."""

Row = RowMapping


def access_of(tx: Connection, *which: Any) -> list[dict[str, Any]]:
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
    """Return which condition of the view `workspace_members` a membership does not meet."""
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
    newest_first = select(Change.__table__).where(*mine).order_by(Change.id.desc()).limit(MAX_CHANGES)
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
    """Return domains with their auto-join state, whether people join by them now, and if not why not."""
    mirror = tx.execute(select(Mirror.__table__)).one()
    mine = set(tx.execute(select(Domain.id).where(*which)).scalars())
    found = auto_join.claims(tx, mine)
    now = auto_join.auto_join_statuses(found)
    view = auto_join_domains.c
    named = {claim.domain for claim in found}
    joining = {
        (domain, owner)
        for domain, owner in tx.execute(select(view.domain, view.organization_id).where(view.domain.in_(named)))
    }
    told = select(Domain.id, Domain.domain).where(Domain.id.in_(mine))
    names = {row.id: row.domain for row in tx.execute(told)}
    states = []
    for claim in found:
        if claim.domain_id not in mine:
            continue
        state, reason = now[claim.domain_id]
        on = state is AutoJoinState.VERIFIED and (claim.domain, claim.organization_id) in joining
        why = "verified, by this workspace only" if on else WORDS[state].format(reason or "") or _off(tx, claim, mirror)
        states.append(
            {
                "id": claim.domain_id,
                "domain": names[claim.domain_id],
                "organization_id": claim.organization_id,
                "verification": claim.verification,
                "state": state.value,
                "auto_join": on,
                "why": why,
            }
        )
    return sorted(states, key=lambda row: (str(row["domain"]), str(row["id"])))


WORDS = {
    AutoJoinState.PENDING: "{}",
    AutoJoinState.VERIFIED: "",
    AutoJoinState.FAILED: "not verified: {}",
    AutoJoinState.CONFLICTED: "in conflict: {}",
    AutoJoinState.REVOKED: "{}",
}
"""Why a domain in each state does not auto-join; of a verified one it takes a look."""


def _off(tx: Connection, claim: auto_join.Claim, mirror: Any) -> str:
    """Return why nobody joins by a domain although it is verified by one live workspace only."""
    reasons = {
        "it is no domain name": claim.domain is None,
        "a public mail provider: its domain is nobody's own": _is_public(tx, claim.domain),
        "AUTO_JOIN is off": mirror.auto_join == "off",
    }
    reason = next((reason for reason, holds in reasons.items() if holds), None)
    return reason or _switched_off(tx, claim.organization_id or "")


def _switched_off(tx: Connection, organization_id: str) -> str:
    row = tx.execute(
        select(WorkspaceSettings.who, WorkspaceSettings.why).where(WorkspaceSettings.organization_id == organization_id)
    ).one_or_none()
    return f"switched off by {row.who}: {row.why}" if row else "not now"


def _is_public(tx: Connection, domain: str | None) -> bool:
    return tx.execute(select(PublicDomain.domain).where(PublicDomain.domain == domain)).one_or_none() is not None
