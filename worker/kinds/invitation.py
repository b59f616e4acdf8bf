"""Invitations: people who are asked to join a workspace. They join by accepting, not by their domain."""

from datetime import datetime

from sqlalchemy.orm import Mapped, mapped_column

from models.addresses import normalize_address
from models.tables import Mirrored
from models.types import JsonObject
from worker.decision.decide import Content
from worker.decision.payload import Fields
from worker.kinds.kind import Kind, Listing, RoleMap, ShownBy, live

BLOCK_RANK = {"accepted": 0, "expired": 0, "pending": 1, "revoked": 3}
"""Status → rank; a higher status blocks auto-join for longer. Any other status has the rank `UNKNOWN_RANK`."""
UNKNOWN_RANK = 2


class Invitation(Mirrored):
    """An invitation of an e-mail address to a workspace, without WorkOS's `token` and `accept_invitation_url`."""

    __tablename__ = "invitations"

    organization_id: Mapped[str | None] = mapped_column(index=True)
    email: Mapped[str | None]
    status: Mapped[str | None]
    """WorkOS's `state`. An expired invitation is still `pending` here: the views compare `expires_at` with the time."""
    role_slug: Mapped[str | None]
    """The role that the person gets by accepting."""
    inviter_user_id: Mapped[str | None]
    accepted_user_id: Mapped[str | None] = mapped_column(index=True)
    expires_at: Mapped[datetime | None]
    accepted_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    email_normalized: Mapped[str | None]
    """Derived from `email` by `models.addresses.normalize_address`; None for an invalid address: it blocks nobody."""


def _derive(content: Content) -> JsonObject:
    address = normalize_address(content.get("email"))
    return {"email_normalized": address.normalized if address else None}


def _tie_break(content: Content) -> tuple[int]:
    """Prefer the status that blocks longer."""
    return (BLOCK_RANK.get(content["status"], UNKNOWN_RANK),)


def _content(data: Fields, _roles: RoleMap) -> JsonObject:
    status, expires_at = data.text("state"), data.optional_time("expires_at")
    return {
        "organization_id": data.optional_id("organization_id"),  # absent from an invitation to the environment
        "email": data.email("email"),
        # WorkOS turns `pending` into `expired` without an event or a new `updated_at`; the views compare the time.
        "status": "pending" if status == "expired" and expires_at else status,
        "role_slug": data.text("role_slug"),
        "inviter_user_id": data.optional_id("inviter_user_id"),
        "accepted_user_id": data.optional_id("accepted_user_id"),
        "expires_at": expires_at,
        "accepted_at": data.optional_time("accepted_at"),
        "revoked_at": data.optional_time("revoked_at"),
    }


INVITATION = Kind(
    name="invitation",
    object="invitation",
    table=Invitation,
    content=_content,
    events={
        "invitation.created": live,
        "invitation.accepted": live,
        "invitation.revoked": live,
        "invitation.resent": live,
    },
    read_path=lambda id: ("user_management", "invitations", id),
    listings=(
        Listing(
            "invitations",
            lambda _: ("user_management", "invitations"),
            params=lambda organization_id: {"organization_id": organization_id} if organization_id else {},
            workspace_resync=True,
            required=False,  # an API key may lack the permission to list invitations
        ),
    ),
    shown_by=(ShownBy("invitations"), ShownBy("invitations", parent=Invitation.organization_id)),
    label=Invitation.email,
    derive=_derive,
    tie_break=_tie_break,
    personal=("email",),
    stays_erased=True,
)
