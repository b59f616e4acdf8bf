"""Which users are the same person, judged by their e-mail addresses."""

from sqlalchemy import Connection, select
from sqlalchemy.orm import aliased

from models.tables import UserAddress


def same_person(tx: Connection, user_id: str) -> set[str]:
    """Return the user ids of one person: `user_id`, and every user that ever had one of its addresses."""
    own, shared = aliased(UserAddress), aliased(UserAddress)
    others = select(shared.user_id).join(own, own.email_hash == shared.email_hash).where(own.user_id == user_id)
    return {user_id, *tx.execute(others).scalars()}
