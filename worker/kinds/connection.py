"""SSO connections: single sign-on of a workspace."""

from sqlalchemy.orm import Mapped, mapped_column

from models.tables import Mirrored
from worker.decision.decide import Content
from worker.kinds.kind import Kind, Listing, ShownBy, live, tombstone


class Connection(Mirrored):
    """A way to sign in to a workspace with single sign-on."""

    __tablename__ = "connections"

    organization_id: Mapped[str | None] = mapped_column(index=True)
    name: Mapped[str | None]
    connection_type: Mapped[str | None]
    status: Mapped[str | None]
    """WorkOS's `state`. People can sign in only if it is `active`."""
    domains: Mapped[list[str] | None]
    """Domain names, sorted."""


def _tie_break(content: Content) -> tuple[bool]:
    """Prefer a connection that is not active."""
    return (content["status"] != "active",)


CONNECTION = Kind(
    name="connection",
    object="connection",
    table=Connection,
    content=lambda data, _roles: {
        **data.given(organization_id=data.optional_id),  # may be absent (docs/workos.md, Connections)
        "name": data.text("name"),
        "connection_type": data.text("connection_type"),
        "status": data.text("state"),
        "domains": data.texts("domains", "domain"),
    },
    events={"connection.activated": live, "connection.deactivated": live, "connection.deleted": tombstone},
    read_path=lambda id: ("connections", id),
    listings=(
        Listing(
            "connections",
            lambda _: ("connections",),
            params=lambda organization_id: {"organization_id": organization_id} if organization_id else {},
            workspace_resync=True,
            required=False,  # an API key may lack the permission to list connections
        ),
    ),
    shown_by=(ShownBy("connections"), ShownBy("connections", parent=Connection.organization_id)),
    label=Connection.name,
    tie_break=_tie_break,
    optional=("organization_id",),
)
