"""Users' addresses as they are compared, mended where they are not what their e-mail says.

While processes of the release before these columns are being replaced, they write users without them: then whoever was
removed could join again, and whoever left a domain could still join by it.
"""

from sqlalchemy import Connection, Engine, Row, func, or_, select, update

from models.access import normal_address
from models.database import reading, write
from models.tables import User

STEP = 500


def mend(engine: Engine) -> int:
    """Work out anew what does not look like its e-mail, and return how many users were wrong."""
    mended, after = 0, ""
    while found := _suspects(engine, after):
        mended += write(engine, lambda tx: sum(_mend(tx, user) for user in found))
        after = found[-1].id
    return mended


def _suspects(engine: Engine, after: str) -> list[Row[str, str | None]]:
    # Most addresses are written as they are compared, but for capitals: the others are few, and looked at each time.
    differs = or_(User.email_normalized.is_distinct_from(func.lower(User.email)), User.email_domain.is_(None))
    either = or_(User.email.is_not(None), User.email_normalized.is_not(None))
    query = select(User.id, User.email).where(differs, either, User.id > after).order_by(User.id).limit(STEP)
    with reading(engine) as tx:
        return list(tx.execute(query))


def _mend(tx: Connection, user: Row[str, str | None]) -> int:
    address = normal_address(user.email)
    normalized, domain = address or (None, None)
    wrong = or_(User.email_normalized.is_distinct_from(normalized), User.email_domain.is_distinct_from(domain))
    unchanged = User.email.is_not_distinct_from(user.email)
    values = {"email_normalized": normalized, "email_domain": domain}
    return tx.execute(update(User).where(User.id == user.id, unchanged, wrong).values(values)).rowcount
