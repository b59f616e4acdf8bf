"""Roles of the environment, and organizations' own roles. WorkOS identifies them by slug."""

from collections.abc import Iterator

from sqlalchemy.orm import Mapped, mapped_column

from models.tables import Mirrored
from models.types import JsonObject
from worker.decision.decide import Content
from worker.decision.payload import Fields
from worker.errors import PayloadError
from worker.kinds.kind import Frequency, Kind, Listing, Path, RoleMap, ShownBy, live, tombstone


class Role(Mirrored):
    """An entry of the role catalogue. Its id is `slug`, or `organization_id/slug` for an organization's own role."""

    __tablename__ = "roles"

    organization_id: Mapped[str | None] = mapped_column(index=True)
    slug: Mapped[str | None]
    name: Mapped[str | None]
    description: Mapped[str | None]
    permissions: Mapped[list[str] | None]
    resource_type: Mapped[str | None]
    """WorkOS's `resource_type_slug`. Only roles of type `organization` can be a member's role. None: of that type."""


def _content(data: Fields, _roles: RoleMap) -> JsonObject:
    # Events of the environment's roles carry no name or description (docs/workos.md), so neither is stored.
    # A role with an unusable organization id must not be mistaken for a role of the environment.
    organization_id = data.id_if_given("organization_id")
    # Null counts as omitted: without a type, the role could be a member's role.
    resource_type = data.text("resource_type_slug")
    return {
        "organization_id": organization_id,
        "slug": data.text("slug"),
        "name": data.text("name") if organization_id else None,
        "description": data.text("description") if organization_id else None,
        "permissions": data.texts("permissions"),
        **({"resource_type": resource_type} if resource_type is not None else {}),
    }


def _key(slug: str, content: Content) -> str:
    organization_id = content["organization_id"]
    return f"{organization_id}/{slug}" if organization_id else slug


def _read_path(id: str) -> Path:
    organization_id, _, slug = id.rpartition("/")
    if not organization_id:
        return ("authorization", "roles", slug)
    return ("authorization", "organizations", organization_id, "roles", slug)


def _from_read(id: str, item: JsonObject) -> JsonObject | None:
    """Add the organization id, which WorkOS omits.

    For an organization that has no role of that slug, WorkOS answers with the environment's role; this returns None.
    """
    organization_id = id.rpartition("/")[0]
    if item.get("type") == "EnvironmentRole":
        return None if organization_id else item
    if item.get("type") == "OrganizationRole" and organization_id:
        return {**item, "organization_id": organization_id}
    raise PayloadError("role.type", "is not that of the requested role")


def _own_roles(item: object, organization_id: str) -> Iterator[tuple[str, object]]:
    """Yield an organization's own role, and nothing for a role of the environment, which the listing shows too."""
    type = item.get("type") if isinstance(item, dict) else None
    if isinstance(item, dict) and type == "OrganizationRole":
        yield "role", {**item, "organization_id": organization_id}
    elif type != "EnvironmentRole":
        yield "role", None


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
            full_resync=Frequency.ORGANIZATIONS_WITH_ROLES,
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
    optional=("resource_type",),
)
