"""Decides the next step of a join, from the mirror and WorkOS's list of the person's memberships."""

from datetime import datetime
from typing import NamedTuple, TypeAlias

import structlog
from sqlalchemy import ColumnElement, Connection, Row, exists, or_, select

from models.addresses import normalize_address
from models.tables import (
    AutoJoinMode,
    Event,
    EventStatus,
    Join,
    JoinState,
    MirrorState,
    UnblockedMembership,
    UserAddress,
)
from models.types import inline_literal
from models.views import auto_join_blocks, auto_join_domains, workspace_members
from worker.decision.mentions import mentions
from worker.decision.payload import parse_time
from worker.decision.roles import slug_for
from worker.errors import WorkOSError
from worker.kinds import RoleMap
from worker.kinds.membership import Membership
from worker.kinds.user import User
from worker.mirror.auto_join import eligible, same_person

log = structlog.get_logger()

INVITATION_PENDING = "invitation pending"
"""The reason in the view `auto_join_blocks` for a pending invitation."""


class ClaimedJoin(NamedTuple):
    """A join as this worker claimed it."""

    organization_id: str
    user_id: str
    state: JoinState
    complete_from: datetime | None
    """Create nothing until every event up to this time, by WorkOS's clock, is applied. None: not set yet."""
    attempted_at: datetime | None
    """WorkOS's time of the listing before the last attempt to create a membership; None: no attempt."""
    membership_id: str | None
    claim: int
    """Incremented by each worker that claims the join. A worker with an older number cannot write."""

    @property
    def row(self) -> tuple[ColumnElement[bool], ...]:
        """The conditions that select its row."""
        return Join.organization_id == self.organization_id, Join.user_id == self.user_id


class Create(NamedTuple):
    """Create a membership."""

    role: str
    """WorkOS's slug of the role."""
    unblocked: frozenset[str]
    """The ids of memberships that an operator unblocked."""


class Close(NamedTuple):
    """Close the join in a state."""

    state: JoinState
    reason: str | None
    membership_id: str | None = None


class Undo(NamedTuple):
    """Deactivate a membership that our create reactivated."""

    membership_id: str


NextStep: TypeAlias = Create | Close | Undo | None
"""The next step of a join. None: wait until more events are applied."""


def next_step(tx: Connection, join: ClaimedJoin) -> NextStep:
    """Return the next step of a join, according to the mirror."""
    columns = (MirrorState.auto_join, MirrorState.role_map, MirrorState.complete_to, MirrorState.backfilled_at)
    mode, role_map, complete_to, backfilled_at = tx.execute(select(*columns)).one()
    switched_off = None if mode == AutoJoinMode.PROVISION else Close(JoinState.DROPPED, f"AUTO_JOIN is {mode}")
    membership, unblocked = _membership_of(tx, join), _unblocked(tx, join)
    if membership is not None and _we_reactivated(join, membership.id, membership.created_at, unblocked):
        return Undo(membership.id)
    if switched_off and join.attempted_at is None:
        return switched_off
    # Even if AUTO_JOIN was turned off, first find out whether an attempt created a membership.
    if not _is_up_to_date(tx, join, complete_to if backfilled_at else None):
        return None
    if membership is not None:
        return Close(JoinState.JOINED, f"a member already: {membership.id}")
    if reasons := _block_reasons(tx, join):
        # A pending invitation blocks only until it expires. The join must not block after that.
        lasting = [reason for reason in reasons if reason != INVITATION_PENDING]
        return Close(JoinState.BLOCKED, lasting[0]) if lasting else Close(JoinState.DROPPED, INVITATION_PENDING)
    return switched_off or _step_by_role(tx, join, role_map, unblocked)


def _step_by_role(tx: Connection, join: ClaimedJoin, role_map: RoleMap, unblocked: frozenset[str]) -> Create | Close:
    """Return the create with the person's role, or why they do not qualify."""
    domain = auto_join_domains.c
    joining = eligible().where(domain.organization_id == join.organization_id, User.id == join.user_id)
    role = tx.execute(joining.with_only_columns(domain.default_role)).scalar_one_or_none()
    if role is None:
        reason = "the address is not verified, or its domain does not auto-join into this workspace"
        return Close(JoinState.DROPPED, reason)
    slug = slug_for(role, role_map)
    return Create(slug, unblocked) if slug else Close(JoinState.FAILED, f"ROLE_MAP maps no role of WorkOS to {role}")


def _membership_of(tx: Connection, join: ClaimedJoin) -> Row[str, datetime | None] | None:
    """Return `id` and `created_at` of the membership that gives the person access; None if there is none."""
    view = workspace_members.c
    query = select(Membership.id, Membership.created_at).join(workspace_members, view.membership_id == Membership.id)
    of_person = (view.organization_id == join.organization_id, view.user_id == join.user_id)
    return tx.execute(query.where(*of_person)).one_or_none()


def _unblocked(tx: Connection, join: ClaimedJoin) -> frozenset[str]:
    of_person = (Membership.organization_id == join.organization_id, Membership.user_id == join.user_id)
    is_unblocked = exists().where(UnblockedMembership.membership_id == Membership.id)
    return frozenset(tx.execute(select(Membership.id).where(*of_person, is_unblocked)).scalars())


def _block_reasons(tx: Connection, join: ClaimedJoin) -> list[str]:
    view = auto_join_blocks.c
    query = select(view.reason).where(view.organization_id == join.organization_id, view.user_id == join.user_id)
    return sorted(set(tx.execute(query).scalars()))


def step_by_membership(join: ClaimedJoin, found: object, unblocked: frozenset[str]) -> Close | Undo | None:
    """Return the next step of a join whose person has this membership in WorkOS; None if it allows a create."""
    if not isinstance(found, dict) or not isinstance(id := found.get("id"), str):
        raise WorkOSError("a membership without an id")
    if found.get("status") != "active":
        # The reasons of the view `auto_join_blocks`, for memberships that the mirror may not have yet.
        reasons = {"inactive": "deactivated", "pending": "invited"}
        reason = reasons.get(str(found.get("status")), "of no known status")
        return None if id in unblocked else Close(JoinState.BLOCKED, f"{reason} in WorkOS", id)
    if _we_reactivated(join, id, parse_time(found.get("created_at")), unblocked):
        return Undo(id)
    log.info("joined", organization_id=join.organization_id, user_id=join.user_id, membership_id=id)
    return Close(JoinState.JOINED, None, id)


def _we_reactivated(join: ClaimedJoin, id: str, created_at: datetime | None, unblocked: frozenset[str]) -> bool:
    """Return whether our unconfirmed attempt activated a membership: it is older, so it was inactive before."""
    attempted_at = join.attempted_at
    older = attempted_at is not None and (created_at is None or created_at < attempted_at)
    return older and id not in unblocked


def _is_up_to_date(tx: Connection, join: ClaimedJoin, complete_to: datetime | None) -> bool:
    """Return whether every event that concerns a join is applied: none is missing, and none has failed."""
    complete_from = tx.execute(select(Join.complete_from).where(*join.row)).scalar_one_or_none()
    late = complete_from is None or complete_to is None or complete_to < complete_from
    return not late and not _has_failed_event(tx, join.user_id)


def _has_failed_event(tx: Connection, user_id: str) -> bool:
    """Return whether a failed event may name the person: it may be a removal, or an invitation that was revoked.

    An event about a membership names them by any of their ids, one about an invitation by any of their addresses.
    """
    about = or_(*(Event.type.startswith(f"{name}.") for name in ("organization_membership", "invitation")))
    failed = (Event.status == inline_literal(EventStatus.FAILED), about)
    bodies = tx.execute(select(Event.body).where(*failed)).scalars().all()
    if not bodies:
        return False
    people = same_person(tx, user_id)
    ids = [id.encode() for id in people]
    hashes = set(tx.execute(select(UserAddress.email_hash).where(UserAddress.user_id.in_(people))).scalars())
    return any(
        body is None  # the payload was erased
        or any(id in body for id in ids)
        or any(address.hash in hashes for address in map(normalize_address, mentions(body).addresses) if address)
        for body in bodies
    )
