"""Roles of the environment, and organizations' own roles. WorkOS identifies them by slug."""

from collections.abc import Iterator
from typing import Any

from sqlalchemy.orm import Mapped, mapped_column

from models.tables import Mirrored
from worker.decision.payload import Fields
from worker.errors import PayloadError
from worker.kinds.kind import Content, Kind, Listing, Path, RoleMap, Scope, ShownBy, live, tombstone


class Role(Mirrored):
    """An entry of the role catalogue. Its id is `slug`, or `organization_id/slug` for an organization's own role."""

    __tablename__ = "roles"

    organization_id: Mapped[str | None] = mapped_column(index=True)
    slug: Mapped[str | None]
    name: Mapped[str | None]
    description: Mapped[str | None]
    permissions: Mapped[list[str] | None]


def _content(data: Fields, _roles: RoleMap, _strict: bool) -> Content:
    # `role.*` events carry no name and description (docs/workos.md), so events could not keep them right.
    # An unusable organization is not a missing one: its role must not be taken for the environment's.
    organization_id = data.id_if_given("organization_id")
    return {
        "organization_id": organization_id,
        "slug": data.text("slug"),
        "name": data.text("name") if organization_id else None,
        "description": data.text("description") if organization_id else None,
        "permissions": data.texts("permissions"),
    }


def _key(slug: str, content: Content) -> str:
    organization_id = content["organization_id"]
    return f"{organization_id}/{slug}" if organization_id else slug


def _read_path(id: str) -> Path:
    organization_id, _, slug = id.rpartition("/")
    if not organization_id:
        return ("authorization", "roles", slug)
    return ("authorization", "organizations", organization_id, "roles", slug)


def _from_read(id: str, item: dict[str, Any]) -> dict[str, Any] | None:
    """Add the organization, which WorkOS leaves out; None if WorkOS answers with the environment's role instead.

    It does that for an organization without a role of that slug.
    """
    match item.get("type"), id.rpartition("/")[0]:
        case "EnvironmentRole", "":
            return item
        case "EnvironmentRole", _:
            return None
        case "OrganizationRole", organization_id if organization_id:
            return {**item, "organization_id": organization_id}
    raise PayloadError("role.type", "is not that of the role that was asked for")


def _own_roles(item: Any, organization_id: str) -> Iterator[tuple[str, Any]]:
    """Yield an organization's own role; its listing shows the environment's roles too."""
    type = item.get("type") if isinstance(item, dict) else None
    if type != "EnvironmentRole":
        yield "role", {**item, "organization_id": organization_id} if type == "OrganizationRole" else None


ROLE = Kind(
    name="role",
    object="role",
    table=Role,
    content=_content,
    events={
        "role.created": live,
        "role.updated": live,
        "role.deleted": tombstone,
        "organization_role.created": live,
        "organization_role.updated": live,
        "organization_role.deleted": tombstone,
    },
    read_path=_read_path,
    from_read=_from_read,
    listings=(
        Listing("roles", lambda _: ("authorization", "roles"), paged=False),
        Listing(
            "organization_roles",
            lambda organization_id: ("authorization", "organizations", organization_id, "roles"),
            paged=False,
            full_resync=Scope.ORGANIZATIONS_WITH_ROLES,
            objects=_own_roles,
        ),
    ),
    shown_by=(
        ShownBy("roles", only=Role.organization_id.is_(None)),
        ShownBy("organization_roles", parent=Role.organization_id),
    ),
    label=Role.slug,
    id_field="slug",
    key=_key,
    delete_is_final=False,
)
