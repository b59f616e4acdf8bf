"""The audit of operators' actions, and operators' sessions on the pages."""

from datetime import datetime

from sqlalchemy import BigInteger, Index, Integer
from sqlalchemy.orm import Mapped, mapped_column

from models.enums import Action, Via
from models.tables.base import Base
from models.types import JsonObject, db_now


class Audit(Base):
    """An action of an operator or a setting, written in the transaction that carries it out."""

    __tablename__ = "audit"

    id: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer(), "sqlite"), primary_key=True, autoincrement=True
    )
    at: Mapped[datetime] = mapped_column(server_default=db_now())
    who: Mapped[str]
    """The login name at the command line, the name of the token on the pages, or the name of the setting."""
    via: Mapped[Via]
    action: Mapped[Action]
    kind: Mapped[str | None]
    """The kind of the object: one of the mirror's, or `run`, `event`, `hook`, `endpoint`."""
    object_id: Mapped[str | None]
    organization_id: Mapped[str | None]
    reason: Mapped[str | None]
    """As entered; None if none was, or if erasure blanked it."""
    details: Mapped[JsonObject | None]

    __table_args__ = (
        Index("ix_audit_at", "at"),
        Index("ix_audit_object_id", "object_id", "id"),
        Index("ix_audit_organization_id", "organization_id", "id"),
        {"sqlite_autoincrement": True},
    )


class OperatorSession(Base):
    """An operator who is signed in to the pages. Signing out deletes the row, so that a copied cookie is worthless."""

    __tablename__ = "operator_sessions"

    id_hash: Mapped[str] = mapped_column(primary_key=True)
    """The SHA-256 of the id in the cookie. A reader of the database cannot sign in with it."""
    who: Mapped[str]
    entries: Mapped[list[str] | None]
    """The entries of OPS_ALLOWED that applied at the sign-in; None if the operator signed in with a token."""
    created_at: Mapped[datetime] = mapped_column(server_default=db_now())
    seen_at: Mapped[datetime] = mapped_column(server_default=db_now())
    """When the operator was last active, to the minute."""
