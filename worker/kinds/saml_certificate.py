"""SAML certificates of SSO connections: people cannot sign in once one has expired."""

from datetime import datetime

from sqlalchemy.orm import Mapped, mapped_column

from models.tables import Mirrored
from models.types import JsonObject
from worker.decision.payload import Envelope, Fields
from worker.kinds.kind import Kind, RoleMap, Snapshot, live_state


class SamlCertificate(Mirrored):
    """The certificate of one type of a connection. Its id is `<connection id>/<type>`."""

    __tablename__ = "saml_certificates"

    connection_id: Mapped[str | None] = mapped_column(index=True)
    organization_id: Mapped[str | None]
    certificate_type: Mapped[str | None]
    """Such as `ResponseSigning`."""
    expires_at: Mapped[datetime | None] = mapped_column(index=True)


def _content(data: Fields, _roles: RoleMap) -> JsonObject:
    connection, certificate = data.nested("connection"), data.nested("certificate")
    return {
        "connection_id": connection.id("id"),
        **connection.given(organization_id=connection.optional_id),
        "certificate_type": certificate.id("certificate_type"),
        "expires_at": certificate.time("expiry_date"),
        "created_at": None,  # WorkOS does not send it
    }


def _certificate(kind: Kind, data: Fields, envelope: Envelope, roles: RoleMap) -> Snapshot:
    return live_state(kind, data.nested("connection"), kind.content(data, roles), envelope)


SAML_CERTIFICATE = Kind(
    name="saml_certificate",
    object="connection",
    table=SamlCertificate,
    content=_content,
    events={
        "connection.saml_certificate_renewal_required": _certificate,
        "connection.saml_certificate_renewed": _certificate,
    },
    parents={"connection_id": "connection"},
    key=lambda id, content: f"{id}/{content.get('certificate_type')}",
    # There is no `updated_at`, and a certificate is renewed under the same id: the event's time orders them.
    delete_is_final=False,
    optional=("organization_id",),
)
