"""Finds users and invitations by e-mail address. The hashes cover former addresses too."""

from collections.abc import Collection

from sqlalchemy import ColumnElement, Connection, Select, and_, func, select

from models.addresses import comparable, normalize_address
from models.bulk import is_any_of
from models.tables import InvitedAddress, UserAddress
from worker.kinds.invitation import Invitation
from worker.kinds.user import User


def has_address(table: type[User] | type[Invitation], email: str) -> ColumnElement[bool]:
    """Return the condition that the current address of a user or invitation is `email`, however either is spelled."""
    if normalize_address(email):
        return table.email_normalized == comparable(email)
    return and_(table.email_normalized.is_(None), func.lower(table.email) == comparable(email))


def sent_to(tx: Connection, user_ids: Collection[str]) -> Select[str]:
    """Select the ids of the invitations that were sent to an address that one of these users has or had."""
    hashes = select(UserAddress.email_hash).where(is_any_of(tx, UserAddress.user_id, user_ids))
    return select(InvitedAddress.invitation_id).where(InvitedAddress.email_hash.in_(hashes))
