"""Organizations: the workspaces of the product."""

from collections.abc import Iterator

from sqlalchemy.orm import Mapped, mapped_column

from models.tables import Mirrored, equality_index
from models.types import JsonObject
from worker.errors import PayloadError
from worker.kinds.kind import Frequency, Kind, Listing, ShownBy, live, tombstone


class Organization(Mirrored):
    """A workspace."""

    __tablename__ = "organizations"

    name: Mapped[str | None]
    external_id: Mapped[str | None]
    """The product's own id for it."""
    stripe_customer_id: Mapped[str | None]
    metadata_: Mapped[JsonObject | None] = mapped_column("metadata")
    """None if it is empty."""

    __table_args__ = (equality_index("ix_organizations_external_id", "external_id"),)


def _with_domains(item: object, _parent: str) -> Iterator[tuple[str, object]]:
    """Yield an organization and its domains. WorkOS has no listing of domains."""
    yield "organization", item
    if isinstance(item, dict):
        domains = item.get("domains")
        if not isinstance(domains, list):
            raise PayloadError("organization.domains", "is not a list")
        yield from (("domain", domain) for domain in domains)


ORGANIZATION = Kind(
    name="organization",
    object="organization",
    table=Organization,
    content=lambda data, _roles: {
        "name": data.text("name"),
        **data.given(external_id=data.text, stripe_customer_id=data.text, metadata=data.json),
    },
    events={"organization.created": live, "organization.updated": live, "organization.deleted": tombstone},
    read_path=lambda id: ("organizations", id),
    listings=(
        Listing("organizations", lambda _: ("organizations",), objects=_with_domains),
        Listing("organization", path=None, full_resync=Frequency.NEVER, workspace_resync=True, objects=_with_domains),
    ),
    shown_by=(ShownBy("organizations"),),
    label=Organization.name,
    organization_of=lambda id, _content: id,
    optional=("external_id", "stripe_customer_id", "metadata"),
)
