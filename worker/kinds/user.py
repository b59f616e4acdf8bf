"""Users: people, identified by their e-mail address."""

from sqlalchemy import Index, text
from sqlalchemy.orm import Mapped, mapped_column

from models.addresses import normalize_address
from models.tables import Mirrored, equality_index
from models.types import JsonObject
from worker.decision.decide import Content
from worker.kinds.kind import Kind, Listing, ShownBy, live, tombstone


class User(Mirrored):
    """A person."""

    __tablename__ = "users"

    email: Mapped[str | None] = mapped_column(index=True)
    email_verified: Mapped[bool | None]
    first_name: Mapped[str | None]
    last_name: Mapped[str | None]
    email_normalized: Mapped[str | None] = mapped_column(index=True)
    """Derived from `email` by `models.addresses.normalize_address`, as is `email_domain`."""
    email_domain: Mapped[str | None]
    external_id: Mapped[str | None]
    """The product's own id for the person."""
    metadata_: Mapped[JsonObject | None] = mapped_column("metadata")
    """None if it is empty."""

    __table_args__ = (
        Index("ix_users_email_domain_id", "email_domain", "id"),
        # The order of lists of people: of all, and of a large workspace.
        Index("ix_users_by_address", text("coalesce(email, '')"), "id", postgresql_concurrently=True),
        equality_index("ix_users_external_id", "external_id"),
    )


def _derive(content: Content) -> JsonObject:
    normalized, domain = normalize_address(content.get("email")) or (None, None)
    return {"email_normalized": normalized, "email_domain": domain}


def _tie_break(content: Content) -> tuple[bool]:
    """Prefer an address that is not verified."""
    return (not content["email_verified"],)


USER = Kind(
    name="user",
    object="user",
    table=User,
    content=lambda data, _roles: {
        "email": data.email("email"),
        "email_verified": data.flag("email_verified"),
        "first_name": data.text("first_name"),
        "last_name": data.text("last_name"),
        **data.given(external_id=data.text, metadata=data.json),
    },
    events={"user.created": live, "user.updated": live, "user.deleted": tombstone},
    read_path=lambda id: ("user_management", "users", id),
    listings=(Listing("users", lambda _: ("user_management", "users")),),
    shown_by=(ShownBy("users"),),
    label=User.email,
    derive=_derive,
    tie_break=_tie_break,
    personal=("email", "first_name", "last_name", "external_id", "metadata"),
    optional=("external_id", "metadata"),
)
