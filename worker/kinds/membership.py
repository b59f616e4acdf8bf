"""Organization memberships: a person's place in a workspace, with a role."""

from sqlalchemy import Index
from sqlalchemy.orm import Mapped, mapped_column

from models.tables import Mirrored, index_where
from models.types import JsonObject
from worker.decision.decide import Content
from worker.decision.payload import Fields
from worker.decision.roles import LOCAL_ROLES, local_role
from worker.kinds.kind import Frequency, Kind, Listing, RoleMap, ShownBy, live, tombstone


class Membership(Mirrored):
    """A person's place in a workspace."""

    __tablename__ = "memberships"

    organization_id: Mapped[str | None]
    user_id: Mapped[str | None] = mapped_column(index=True)
    status: Mapped[str | None]
    """WorkOS's status. Only `active` gives access."""
    workos_roles: Mapped[list[str] | None]
    """All role slugs, sorted."""
    workos_role: Mapped[str | None]
    """The slug that `role` was mapped from."""
    role: Mapped[str | None]
    """The local role: `admin` or `member`."""
    directory_managed: Mapped[bool | None]
    custom_attributes: Mapped[JsonObject | None]
    """None if there are none."""

    __table_args__ = (
        Index("ix_memberships_organization_id_user_id", "organization_id", "user_id"),
        index_where("deleted_by IS NULL", "ix_memberships_workos_role", "workos_role"),
    )


def _content(data: Fields, roles: RoleMap) -> JsonObject:
    slugs = data.slugs()
    workos_role, role = local_role(slugs, roles)
    return {
        **data.ids("organization_id", "user_id"),
        "status": data.text("status"),
        "workos_roles": slugs,
        "workos_role": workos_role,
        "role": role,
        "directory_managed": data.flag("directory_managed"),
        **data.given(custom_attributes=data.json),
    }


def _tie_break(content: Content) -> tuple[int, int]:
    """Prefer a membership that is not active, then the lower local role."""
    return content["status"] != "active", -LOCAL_ROLES.index(content["role"])


MEMBERSHIP = Kind(
    name="membership",
    object="organization_membership",
    table=Membership,
    content=_content,
    events={
        "organization_membership.created": live,
        "organization_membership.updated": live,
        "organization_membership.deleted": tombstone,
    },
    read_path=lambda id: ("user_management", "organization_memberships", id),
    listings=(
        Listing(
            "memberships",
            lambda _: ("user_management", "organization_memberships"),
            # Without `statuses`, WorkOS lists only active memberships.
            params=lambda organization: {"organization_id": organization, "statuses": "active,inactive,pending"},
            full_resync=Frequency.EACH_ORGANIZATION,
            workspace_resync=True,
        ),
    ),
    shown_by=(ShownBy("memberships", parent=Membership.organization_id),),
    parents={"organization_id": "organization", "user_id": "user"},
    tie_break=_tie_break,
    personal=("custom_attributes",),
    optional=("organization_id", "user_id", "custom_attributes"),
    stays_erased=True,
)
