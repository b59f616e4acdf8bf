"""The read contract for products in Python: who may enter which workspace, and with which role."""

import math
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Row, Select, exists, func, select
from sqlalchemy.orm import Session

from models.addresses import normalize_address
from models.tables import MirrorState
from models.views import (
    EXPIRED_EVENTS,
    LARGEST_BOUND,
    auto_join_blocks,
    auto_join_domains,
    member_permissions,
    mirror_status,
    uncertain_access,
    workspace_members,
)


class WorkspaceAccess(NamedTuple):
    """A workspace that a user may enter."""

    organization_id: str
    workspace_name: str | None
    role: str


class AutoJoin(NamedTuple):
    """The workspace that people with an e-mail address on a domain join, and their role there."""

    organization_id: str
    default_role: str


class Access(NamedTuple):
    """A person's access to a workspace, as of one moment."""

    role: str | None
    """The local role, `admin` or `member`; None for no access."""
    complete_to: datetime | None
    """Every event up to this time (UTC, WorkOS's clock) is applied, or has failed; failed events that may affect access
    are in `uncertain_access`. None if the events API was never read."""


class Stale(Exception):  # noqa: N818 - the word of the contract
    """The mirror cannot answer within the requested bound. Treat it as no access, or retry.

    Attributes:
        reason: why, for people. Names no person.
        complete_to: as `Access.complete_to`.
        retry_after: seconds after which a retry may succeed.
    """

    def __init__(self, reason: str, complete_to: datetime | None, retry_after: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.complete_to = complete_to
        self.retry_after = retry_after


def role_of(session: Session, user_id: str, organization_id: str, max_staleness: float | None = None) -> str | None:
    """Return the local role (`admin` or `member`) of a user in a workspace; None for no access.

    Args:
        session: a session on the mirror's database.
        user_id: WorkOS's id of the user.
        organization_id: WorkOS's id of the organization.
        max_staleness: in seconds; with it, the answer is never older (docs/integration.md, Bounded staleness). None:
            answer from what the mirror has, however old it is.

    Raises:
        Stale: the answer may be older than `max_staleness`.
        ValueError: `max_staleness` is NaN, below the smallest bound that can be met, or more than a day.
    """
    if max_staleness is None:
        return session.execute(_role(user_id, organization_id)).scalar_one_or_none()
    return access_of(session, user_id, organization_id, max_staleness).role


def _role(user_id: str, organization_id: str) -> Select[str]:
    view = workspace_members.c
    return select(view.role).where(view.organization_id == organization_id, view.user_id == user_id)


def access_of(
    session: Session,
    user_id: str,
    organization_id: str,
    max_staleness: float | None = None,
    *,
    complete_to: datetime | None = None,
) -> Access:
    """Return a user's access to a workspace with the time up to which it is known; arguments and errors of `role_of`.

    With `complete_to` (aware, by WorkOS's clock), `Stale` is also raised if the mirror is not complete up to that time.
    All of it comes from one statement, so that nothing can change in between.
    """
    uncertain = uncertain_access.c
    event_id = select(func.min(uncertain.event_id)).where(
        uncertain.organization_id.in_(("", organization_id)), uncertain.user_id.in_(("", user_id))
    )
    role = _role(user_id, organization_id).scalar_subquery().label("role")
    found = session.execute(select(role, event_id.scalar_subquery().label("event_id"), *mirror_status.c)).one()
    if max_staleness is not None:
        _require_possible(found, max_staleness)
    if max_staleness is not None or complete_to is not None:
        _require_fresh(found, max_staleness, complete_to)
    return Access(found.role, found.complete_to)


def _require_possible(found: Row[*tuple[Any, ...]], max_staleness: float) -> None:
    smallest: float = found.smallest_bound_seconds
    if not smallest <= max_staleness <= LARGEST_BOUND:  # false for NaN too
        raise ValueError(f"max_staleness must be from {smallest:g} to {LARGEST_BOUND:g} seconds")


def _require_fresh(found: Row[*tuple[Any, ...]], max_staleness: float | None, complete_to: datetime | None) -> None:
    if found.state != "current":
        raise Stale("the mirror is not filled yet", found.complete_to, 60)
    known: datetime | None = found.complete_to
    # The age is negative if the database's clock was set back.
    too_old = max_staleness is not None and not (known and 0 <= found.age_seconds <= max_staleness)
    behind = (complete_to - known).total_seconds() if complete_to and known else 0.0
    if known is None or too_old or behind > 0:
        since = f"is complete up to {known:%Y-%m-%dT%H:%M:%SZ}" if known else "was never complete"
        reason = f"the mirror {since}{f'; {found.error}' if found.error else ''}"
        raise Stale(reason, known, max(5, min(60, math.ceil(behind))))
    if found.event_id == EXPIRED_EVENTS:
        reason = "events expired at WorkOS before they were read; run: workos-sync resync"
        raise Stale(reason, found.complete_to, 10)
    if found.event_id is not None:
        raise Stale(f"event {found.event_id} was not applied and may have changed this", found.complete_to, 10)


def workspaces_of(session: Session, user_id: str) -> list[WorkspaceAccess]:
    """Return the workspaces a user may enter, sorted by name."""
    view = workspace_members.c
    rows = session.execute(
        select(view.organization_id, view.workspace_name, view.role)
        .where(view.user_id == user_id)
        .order_by(view.workspace_name, view.organization_id)
    )
    return [WorkspaceAccess(*row) for row in rows]


def permissions_of(session: Session, user_id: str, organization_id: str) -> list[str] | None:
    """Return the slugs of a user's permissions in a workspace, sorted; empty for a user without access.

    None until a full resync has listed the permissions. Treat None as no permission.
    """
    listed = session.execute(select(MirrorState.listed_kinds)).scalar_one()
    if "permission" not in (listed or ()):
        return None
    view = member_permissions.c
    of_user = (view.organization_id == organization_id, view.user_id == user_id)
    return list(session.execute(select(view.permission).where(*of_user).order_by(view.permission)).scalars())


def auto_join_for(session: Session, email: str) -> AutoJoin | None:
    """Return the workspace that a person with the address `email` joins, or None.

    None also if the address belongs, or once belonged, to someone who was removed from that workspace, deactivated in
    it, invited to it or blocked. The caller must have verified the address.
    """
    address = normalize_address(email)
    if address is None:
        return None
    view, block = auto_join_domains.c, auto_join_blocks.c
    blocked = exists().where(block.organization_id == view.organization_id, block.email_hash == address.hash)
    query = select(view.organization_id, view.default_role).where(view.domain == address.domain, ~blocked)
    row = session.execute(query).one_or_none()
    return AutoJoin(*row) if row else None
