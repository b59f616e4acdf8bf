"""The audit: a row for every action of an operator or a setting, written in the action's own transaction."""

from typing import NamedTuple

from sqlalchemy import Connection, insert

from models.tables import Action, Audit, Via
from worker.errors import ConfigurationError

REASON_REQUIRED = frozenset(
    (
        Action.APPROVE_DELETIONS,
        Action.DISMISS_EVENT,
        Action.DISMISS_DELIVERIES,
        Action.SET_AUTO_JOIN,
        Action.BLOCK,
        Action.UNBLOCK,
        Action.APPROVE_ROLE_MAP,
    )
)
"""Actions by which people may lose or gain access."""


class Actor(NamedTuple):
    """The requester of an action: the name, the way and the reason."""

    who: str
    """An operator's name, or the name of a setting."""
    via: Via
    reason: str | None = None


def note(
    tx: Connection,
    /,
    actor: Actor,
    action: Action,
    *,
    kind: str | None = None,
    object_id: str | None = None,
    organization_id: str | None = None,
    **details: object,
) -> None:
    """Add a row to the audit in the transaction of the action. `details` are JSON; those that are None are left out.

    Raises:
        ConfigurationError: the action requires a reason, and the actor gives none.
    """
    if action in REASON_REQUIRED and not actor.reason:
        raise ConfigurationError("a reason is required, because people may lose or gain access")
    given = {name: value for name, value in details.items() if value is not None}
    about = {"kind": kind, "object_id": object_id, "organization_id": organization_id}
    tx.execute(insert(Audit).values(**actor._asdict(), action=action, **about, details=given or None))
