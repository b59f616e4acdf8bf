"""Reports who has access to which workspace, which domains auto-join and which invitations block, with reasons."""

import re
from collections.abc import Container
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, case, exists, func, select

from models.rows import all_rows
from models.tables import (
    AutoJoinMode,
    AutoJoinState,
    Change,
    DeletedBy,
    Event,
    FailedEffect,
    MirrorState,
    PublicDomain,
    UnblockedInvitation,
    WorkspaceSettings,
)
from models.types import Record, db_now
from models.views import auto_join_domains
from worker.kinds.domain import Domain
from worker.kinds.invitation import Invitation
from worker.kinds.membership import MEMBERSHIP, Membership
from worker.kinds.organization import ORGANIZATION, Organization
from worker.kinds.user import USER
from worker.mirror import auto_join
from worker.reports.past import CAUSE, Moment, members, states
from worker.reports.past_workos import History, histories_of, members_as_workos, with_missing_events

MAX_CHANGES = 500
"""Maximum number of a membership's changes searched for the cause of its access and role."""
DELETED = {
    DeletedBy.EVENT: "was deleted in WorkOS",
    DeletedBy.RESYNC: "no longer exists in WorkOS (found by a read)",
}
ACTIVE = "active membership; neither the person nor the workspace is deleted"
"""Why a person has access."""
WHY_NOT = {
    AutoJoinState.PENDING: "{}",
    AutoJoinState.VERIFIED: "",
    AutoJoinState.FAILED: "not verified: {}",
    AutoJoinState.CONFLICTED: "in conflict: {}",
    AutoJoinState.REVOKED: "{}",
}
"""Why a domain in each state does not auto-join. Empty for a verified one: `_why_off` finds the reason."""


def access_of(tx: Connection, *which: ColumnElement[bool], moment: Moment | None = None) -> list[Record]:
    """Return a row for each membership that meets `which`: whether it gives access, why, since when and the cause.

    The answer is about now, or about a moment; `which` is about the memberships now. The rows are sorted by workspace
    name and membership id. `role` is None without access. `since` and `role_since` are aware, in UTC. Like `cause`,
    `actor`, `role_cause` and `role_actor`, they are None if the change has been pruned.
    """
    membership = states(MEMBERSHIP, moment, *which)
    workspace, person = states(ORGANIZATION, moment).c, states(USER, moment).c
    own = membership.c
    joined = (
        select(
            *(own.id, own.organization_id, own.user_id, own.status, own.workos_role, own.deleted_by, workspace.name),
            workspace.id.label("organization_known"),
            workspace.deleted_by.label("organization_deleted_by"),
            person.id.label("user_known"),
            person.deleted_by.label("user_deleted_by"),
        )
        .outerjoin_from(membership, workspace.id.table, workspace.id == own.organization_id)
        .outerjoin(person.id.table, person.id == own.user_id)
        .order_by(workspace.name, own.id)
    )
    memberships = all_rows(tx, joined)
    user_ids = {row["user_id"] for row in memberships}
    view = members(tx, moment, Membership.user_id.in_(user_ids)).c
    with_access = dict(tx.execute(select(view.membership_id, view.role).where(view.user_id.in_(user_ids))).all())
    return [
        {
            "organization_id": row["organization_id"],
            "workspace_name": row["name"],
            "membership_id": row["id"],
            "user_id": row["user_id"],
            "access": row["id"] in with_access,
            "role": with_access.get(row["id"]),
            "workos_role": row["workos_role"],
            "why": ACTIVE if row["id"] in with_access else _why_not(row),
            **_causes(tx, row["id"], moment),
        }
        for row in memberships
    ]


def access_as_workos(tx: Connection, at: datetime, *which: ColumnElement[bool]) -> list[Record]:
    """Return the rows of `access_of` as WorkOS had it at an aware time, sorted by workspace name and membership id.

    `since` is WorkOS's time of the last change, by `cause` and `actor`. Each row also has `approximate`,
    `changed_after` and `changed_before`, as those of `members_as_workos`, whose errors this raises.
    """
    columns = (Membership.organization_id, Membership.user_id)
    found = tx.execute(select(Membership.id, *columns).where(*which)).all()
    ids, workspaces, people = (set(filter(None, each)) for each in zip(*found, strict=True)) if found else ((),) * 3
    members = {row["membership_id"]: row for row in members_as_workos(tx, at, Membership.user_id.in_(people))}
    own, of_workspaces, of_people = (
        histories_of(tx, kind, some) for kind, some in ((MEMBERSHIP, ids), (ORGANIZATION, workspaces), (USER, people))
    )
    rows = []
    for id, workspace_id, user_id in found:
        content = own[id].content(at, early=False) or (own[id].content(at, early=True) if id in members else None)
        if content is None:
            continue  # it did not exist yet
        workspace, person = (
            history.content(at, early=False) if history else None
            for history in (of_workspaces.get(workspace_id or ""), of_people.get(user_id or ""))
        )
        state = {"status": content["status"], "user_known": person, "organization_known": workspace}
        for name, each in (("", content), ("user_", person), ("organization_", workspace)):
            state[f"{name}deleted_by"] = DeletedBy.EVENT if each and each["state"] == "deleted" else None
        member = members.get(id) or _last_change(own[id], at)
        rows.append(
            {
                "organization_id": workspace_id,
                "workspace_name": workspace and workspace["name"],
                "membership_id": id,
                "user_id": user_id,
                "access": id in members,
                "role": member.get("role"),
                "workos_role": content["workos_role"],
                "why": ACTIVE if id in members else _why_not(state),
                "since": member["changed_at"],
                "cause": cause_of(member),
                "actor": actor_of(member),
                **{name: member[name] for name in ("approximate", "changed_after", "changed_before")},
            }
        )
    complete = with_missing_events(tx, at, rows)
    return sorted(complete, key=lambda row: (row["workspace_name"] or "", row["membership_id"]))


def _last_change(membership: History, at: datetime) -> Record:
    """Return when and by what a membership that gives no access last changed, with the columns of a member's row."""
    last = membership.last_change(at)
    between = [step for step in (last, *membership.uncertain(at)) if step and step.earliest != step.latest]
    return {
        **(last.cause if last else dict.fromkeys(CAUSE)),
        "changed_at": last and last.latest,
        "approximate": bool(membership.uncertain(at)),
        "changed_after": min((step.earliest for step in between), default=None),
        "changed_before": max((step.latest for step in between), default=None),
    }


def _why_not(row: Record) -> str:
    """Return which condition of the view `workspace_members` a membership does not meet."""
    for name, deleted_by in (
        ("membership", row["deleted_by"]),
        ("person", row["user_deleted_by"]),
        ("workspace", row["organization_deleted_by"]),
    ):
        if deleted_by:
            return f"the {name} {DELETED.get(deleted_by)}"
    if row["status"] != "active":
        return f"the membership is {row['status']}" if row["status"] else "the membership has no status"
    if not row["user_known"]:
        return "the person is not in the mirror yet"
    if not row["organization_known"]:
        return "the workspace is not in the mirror yet"
    return "a newer membership of the same person in this workspace takes precedence"


def _causes(tx: Connection, membership_id: str, moment: Moment | None) -> Record:
    """Return time, cause and actor of the last change of whether a membership is active, and of its role (`role_…`)."""
    about = [Change.kind == MEMBERSHIP.name, Change.object_id == membership_id]
    about += [] if moment is None else [Change.id <= moment.change_id]
    changes = all_rows(tx, select(Change.__table__).where(*about).order_by(Change.id.desc()).limit(MAX_CHANGES))
    of_status = (row for row in changes if _active(row["before"]) != _active(row["after"]))
    of_role = (row for row in changes if (row["before"] or {}).get("role") != row["after"]["role"])
    found: Record = {}
    for prefix, newest in (("", next(of_status, None)), ("role_", next(of_role, None))):
        found[f"{prefix}since"] = newest["at"] if newest else None
        found[f"{prefix}cause"] = cause_of(newest) if newest else None
        found[f"{prefix}actor"] = actor_of(newest) if newest else None
    return found


def cause_of(change: Record) -> str | None:
    """Return what caused a change, such as `event event_01`; None if not known."""
    return f"{change['cause']} {change['cause_id']}" if change["cause"] else None


def actor_of(change: Record) -> str | None:
    """Return who made a change at WorkOS, such as `Ann (user_01) via dashboard`; None if not known."""
    id, name, source = (change.get(f"actor_{part}") for part in ("id", "name", "source"))
    who = f"{name} ({id})" if name and id else name or id
    return f"{who} via {source}" if who and source else who or source


def _active(content: Record | None) -> bool:
    return content is not None and content.get("state") == "active" and content.get("status") == "active"


def uncertain_answers(tx: Connection, *which: ColumnElement[bool]) -> list[Record]:
    """Return a row for each failed event, and what it may have changed, that makes bounded answers stale.

    `which` are conditions on `FailedEffect`. `organization_id` or `user_id` is None if the answers about all of them
    are stale. `stored`: whether the inbox has the event. `since` is aware, in UTC. `until` says in words what ends it.
    The oldest come first, at most 500.
    """
    stored = Event.id.is_not(None).label("stored")
    query = select(FailedEffect.__table__, stored).outerjoin(Event, Event.id == FailedEffect.event_id).where(*which)
    query = query.order_by(FailedEffect.since, FailedEffect.event_id)
    return [
        {
            "organization_id": row["organization_id"] or None,
            "user_id": row["user_id"] or None,
            "event_id": row["event_id"],
            "stored": row["stored"],
            "since": row["since"],
            "until": _until(row),
        }
        for row in all_rows(tx, query.limit(MAX_CHANGES))
    ]


def _until(effect: Record) -> str:
    if effect["object_id"]:
        ends = f"{effect['kind']} {effect['object_id']} is read from WorkOS"
    else:
        ends = "a resync of the workspace" if effect["organization_id"] else "a full resync"
    return f"{ends}, or the event is applied or dismissed" if effect["stored"] else ends


def invitation_states(tx: Connection, *which: ColumnElement[bool]) -> list[Record]:
    """Return a row for each invitation that meets `which`: its status now, whether it blocks auto-join, and why.

    The rows are sorted by creation and id, the newest first. `email` is None once erased. Times are aware, in UTC.
    """
    expired = (Invitation.status == "pending") & (Invitation.expires_at <= db_now())
    unblocked = exists().where(
        UnblockedInvitation.invitation_id == Invitation.id,
        UnblockedInvitation.status == func.coalesce(Invitation.status, ""),
    )
    columns = ("id", "organization_id", "email", "email_normalized", "erased", "role_slug", "inviter_user_id")
    times = ("created_at", "expires_at", "accepted_at", "revoked_at", "deleted_by")
    query = select(
        *(Invitation.__table__.c[name] for name in (*columns, "accepted_user_id", *times)),
        case((expired, "expired"), else_=Invitation.status).label("status"),
        unblocked.label("unblocked"),
    )
    newest_first = (Invitation.created_at.desc(), Invitation.id)
    found = all_rows(tx, query.where(*which, Invitation.revision > 0).order_by(*newest_first))
    return [_with_block(row) for row in found]


def _with_block(row: Record) -> Record:
    valid, unblocked = (row.pop(name) for name in ("email_normalized", "unblocked"))
    if row["organization_id"] is None:
        return row | {"blocks": False, "why": "it invites to no workspace"}
    if valid is None and not row["erased"]:
        return row | {"blocks": False, "why": "the address is not valid, so nobody is blocked"}
    if row["status"] in ("accepted", "expired"):
        return row | {"blocks": False, "why": f"{row['status']}: it blocks nobody"}
    if unblocked:
        return row | {"blocks": False, "why": "an operator unblocked the person"}
    if row["status"] == "pending":
        return row | {"blocks": True, "why": "the person joins by accepting, not by domain"}
    return row | {"blocks": True, "why": "blocks until an operator unblocks the person"}


def domain_states(tx: Connection, *which: ColumnElement[bool]) -> list[Record]:
    """Return a row for each domain that meets `which`: its auto-join state, whether people join by it now, and why.

    The rows are sorted by domain name and id.
    """
    mode = tx.execute(select(MirrorState.auto_join)).scalar_one()
    selected = set(tx.execute(select(Domain.id).where(*which)).scalars())
    found = auto_join.domain_claims(tx, selected)
    statuses = auto_join.auto_join_statuses(found)
    view = auto_join_domains.c
    claimed = view.domain.in_({claim.normalized for claim in found})
    joining = {(row.domain, row.organization_id) for row in tx.execute(select(auto_join_domains).where(claimed))}
    owners = Organization.id.in_({claim.organization_id for claim in found})
    names = dict(tx.execute(select(Organization.id, Organization.name).where(owners)).all())
    public = select(PublicDomain.domain).where(PublicDomain.domain.in_({claim.normalized for claim in found}))
    providers = set(tx.execute(public).scalars())
    own = WorkspaceSettings.organization_id.in_({claim.organization_id for claim in found})
    settings = {row.organization_id: row for row in tx.execute(select(WorkspaceSettings.__table__).where(own))}
    states = []
    for claim in found:
        if claim.id not in selected:
            continue
        state, reason = statuses[claim.id]
        on = state is AutoJoinState.VERIFIED and (claim.normalized, claim.organization_id) in joining
        why_off = _why_off(claim, mode, providers, settings.get(claim.organization_id))
        why_not = WHY_NOT[state].format(reason or "") or why_off
        if state is AutoJoinState.CONFLICTED:
            why_not = re.sub(
                r"\borg_\w+", lambda id: f"{name} ({id[0]})" if (name := names.get(id[0])) else id[0], why_not
            )
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


def _why_off(
    claim: auto_join.DomainClaim, mode: AutoJoinMode, providers: Container[str], settings: Row[Any] | None
) -> str:
    """Return why nobody joins by a domain that exactly one workspace, with these settings, has verified."""
    if claim.normalized is None:
        return "not a valid domain name"
    if claim.normalized in providers:
        return "domain of a public mail provider"
    if mode == AutoJoinMode.OFF:
        return "AUTO_JOIN is off"
    return f"switched off by {settings.who}: {settings.why}" if settings else "not in effect yet"
