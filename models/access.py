"""The read contract for products in Python: who may enter which workspace, and with which role."""

from typing import NamedTuple

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from models.addresses import normalize_address
from models.tables import MirrorState
from models.views import auto_join_blocks, auto_join_domains, member_permissions, workspace_members


class WorkspaceAccess(NamedTuple):
    """A workspace that a user may enter."""

    organization_id: str
    workspace_name: str | None
    role: str


class AutoJoin(NamedTuple):
    """The workspace that people with an e-mail address on a domain join, and their role there."""

    organization_id: str
    default_role: str


def role_of(session: Session, user_id: str, organization_id: str) -> str | None:
    """Return the local role (`admin` or `member`) of a user in a workspace; None for no access."""
    view = workspace_members.c
    found = session.execute(select(view.role).where(view.organization_id == organization_id, view.user_id == user_id))
    return found.scalar_one_or_none()


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
    found = select(view.organization_id, view.default_role).where(view.domain == address.domain, ~blocked)
    row = session.execute(found).one_or_none()
    return AutoJoin(*row) if row else None
