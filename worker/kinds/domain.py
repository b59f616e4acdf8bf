"""Organization domains: a verified one lets people with an address on it join the workspace."""

from sqlalchemy.orm import Mapped, mapped_column

from models.addresses import normalize_domain
from models.tables import Mirrored
from models.types import JsonObject
from worker.decision.decide import Content
from worker.decision.payload import Envelope, Fields
from worker.kinds.kind import Kind, RoleMap, ShownBy, Snapshot, live, live_state, tombstone

VERIFIED = ("verified", "legacy_verified")
"""States in which a domain lets people join."""


class Domain(Mirrored):
    """A domain that a workspace claims."""

    __tablename__ = "domains"

    organization_id: Mapped[str | None] = mapped_column(index=True)
    domain: Mapped[str | None]
    normalized: Mapped[str | None] = mapped_column(index=True)
    """`models.addresses.normalize_domain` of `domain`."""
    verification: Mapped[str | None]
    """WorkOS's `state`. Those in `VERIFIED` let people join."""
    reason: Mapped[str | None]
    """Why verification failed."""


def _content(data: Fields, _roles: RoleMap) -> JsonObject:
    name = data.text("domain")
    return {
        **data.ids("organization_id"),
        "domain": name,
        "normalized": normalize_domain(name),
        "verification": data.text("state"),
        "reason": None,
    }


def _api_content(data: Fields, roles: RoleMap) -> JsonObject:
    content = _content(data, roles)
    if content["verification"] == "failed":
        del content["reason"]  # only the event has it
    return content


def _verification_failed(kind: Kind, data: Fields, envelope: Envelope, roles: RoleMap) -> Snapshot:
    # The only domain event that nests its object (docs/workos.md, Organizations and domains).
    nested = data.nested("organization_domain")
    content = _content(nested, roles) | {"verification": "failed", "reason": data.text("reason")}
    return live_state(kind, nested, content, envelope)


def _tie_break(content: Content) -> tuple[bool]:
    """Prefer a domain that is not verified."""
    return (content["verification"] not in VERIFIED,)


DOMAIN = Kind(
    name="domain",
    object="organization_domain",
    table=Domain,
    content=_content,
    api_content=_api_content,
    events={
        "organization_domain.created": live,
        "organization_domain.updated": live,
        "organization_domain.verified": live,
        "organization_domain.verification_failed": _verification_failed,
        "organization_domain.deleted": tombstone,
    },
    read_path=lambda id: ("organization_domains", id),
    shown_by=(ShownBy("organizations"), ShownBy("organization", parent=Domain.organization_id)),
    label=Domain.domain,
    parents={"organization_id": "organization"},
    tie_break=_tie_break,
    optional=("organization_id",),
)
