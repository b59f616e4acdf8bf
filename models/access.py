"""The read contract for Python hosts: who may enter which workspace, with which role."""

import functools
import hashlib
from typing import NamedTuple

import idna
from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from models.views import auto_join_blocks, auto_join_domains, workspace_members


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
    """Return the local role (`admin` or `member`) of a user in a workspace; None: no access."""
    view = workspace_members.c
    found = session.execute(select(view.role).where(view.organization_id == organization_id, view.user_id == user_id))
    return found.scalar_one_or_none()


def workspaces_of(session: Session, user_id: str) -> list[WorkspaceAccess]:
    """Return the workspaces a user may enter, by name."""
    view = workspace_members.c
    rows = session.execute(
        select(view.organization_id, view.workspace_name, view.role)
        .where(view.user_id == user_id)
        .order_by(view.workspace_name, view.organization_id)
    )
    return [WorkspaceAccess(*row) for row in rows]


def auto_join_for(session: Session, email: str) -> AutoJoin | None:
    """Return the workspace that someone with the verified address `email` joins; None: none.

    None too if the address is or once was that of someone who was removed from that workspace, deactivated in it,
    invited or blocked. The caller vouches that the address is verified: an unverified one must never get here.
    """
    address = normalize_address(email)
    if address is None:
        return None
    view, block = auto_join_domains.c, auto_join_blocks.c
    blocked = exists().where(block.organization_id == view.organization_id, block.email_hash == address.hash)
    found = select(view.organization_id, view.default_role).where(view.domain == address.domain, ~blocked)
    row = session.execute(found).one_or_none()
    return AutoJoin(*row) if row else None


class Address(NamedTuple):
    """An e-mail address as addresses are compared: in lower case, its domain normalized."""

    normalized: str
    domain: str

    @property
    def hash(self) -> str:
        """SHA-256 of `workos-sync:` and the normalized address, in hex: what is kept of it after an erasure."""
        return hashlib.sha256(f"workos-sync:{self.normalized}".encode()).hexdigest()


def normalize_address(email: str | None) -> Address | None:
    """Return `email` for comparison; None if it is no address."""
    local, _, host = (email or "").rpartition("@")
    domain = normalize_domain(host)
    return Address(f"{local.lower()}@{domain}", domain) if local and domain else None


@functools.lru_cache(maxsize=4096)
def normalize_domain(domain: str | None) -> str | None:
    """Return `domain` in lower case, IDNA (UTS 46), without trailing dot; None if it is no domain name."""
    try:
        name = idna.encode((domain or "").rstrip("."), uts46=True, transitional=False).decode("ascii").lower()
    except (idna.IDNAError, UnicodeError):
        return None
    return name if "." in name else None
