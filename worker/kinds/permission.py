"""Permissions that roles grant. WorkOS identifies them by slug, and a slug can be created again."""

from sqlalchemy.orm import Mapped

from models.tables import Mirrored
from worker.kinds.kind import Kind, Listing, ShownBy, live, tombstone


class Permission(Mirrored):
    """An entry of the permission catalogue. Its id is its slug."""

    __tablename__ = "permissions"

    permission_id: Mapped[str | None]
    """WorkOS's id of the permission that has the slug now."""
    name: Mapped[str | None]
    description: Mapped[str | None]
    system: Mapped[bool | None]
    """Whether WorkOS created it and manages it."""
    resource_type: Mapped[str | None]
    """WorkOS's `resource_type_slug`. Only permissions of type `organization` apply to members of a workspace."""


PERMISSION = Kind(
    name="permission",
    object="permission",
    table=Permission,
    content=lambda data, _roles: {
        "permission_id": data.optional_id("id"),
        "name": data.text("name"),
        "description": data.text("description"),
        "system": data.flag("system"),
        "resource_type": data.text("resource_type_slug"),
    },
    events={"permission.created": live, "permission.updated": live, "permission.deleted": tombstone},
    read_path=lambda slug: ("authorization", "permissions", slug),
    # An API key may lack the permission to list permissions.
    listings=(Listing("permissions", lambda _: ("authorization", "permissions"), required=False),),
    shown_by=(ShownBy("permissions"),),
    label=Permission.name,
    id_field="slug",
    delete_is_final=False,
)
