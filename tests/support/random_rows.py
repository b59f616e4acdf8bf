"""Random rows of the tables that the views read."""

import itertools
import random
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, delete, insert

from models.tables import (
    Base,
    InvitedAddress,
    Join,
    PublicDomain,
    UnblockedInvitation,
    UnblockedMembership,
    UserAddress,
    WorkspaceSettings,
)
from tests.support import JSON
from worker.kinds.domain import Domain
from worker.kinds.invitation import Invitation
from worker.kinds.membership import Membership
from worker.kinds.organization import Organization
from worker.kinds.user import User

SIZES = {"user": 40, "org": 8, "domain": 10}


def put_random_rows(tx: Connection, dice: random.Random) -> None:
    """Replace the rows of these tables by random ones."""
    for table, given in random_rows(dice).items():
        tx.execute(delete(table))
        tx.execute(insert(table), given)


def random_rows(dice: random.Random) -> dict[type[Base], list[JSON]]:
    """Few workspaces, people and addresses, so that they collide; every column that the views read varies."""
    people, workspaces, names = ([f"{what}_{n}" for n in range(number)] for what, number in SIZES.items())
    known = people[:-3]  # of some there are only memberships and joins yet

    def some(*values: object) -> Any:
        return dice.choice(values)

    def at() -> datetime | None:
        return dice.choice([None, *(datetime(2026, 1, 1, hour, tzinfo=UTC) for hour in range(4))])

    def mirrored(id: str) -> JSON:
        version = {"event_at": at(), "event_id": f"event_{dice.randrange(5)}", "created_at": at(), "revision": 1}
        return {"id": id, "deleted_by": some(None, None, None, None, "event", "resync"), **version}

    def membership(n: int) -> JSON:
        status = some(None, "active", "active", "inactive", "pending", "dormant")
        place = {"organization_id": some(*workspaces), "user_id": some(None, *people)}
        return mirrored(f"om_{n}") | place | {"status": status}

    def domain(n: int) -> JSON:
        place = {"organization_id": some(None, *workspaces), "normalized": some(None, *names)}
        return mirrored(f"domain_{n}") | place | {"verification": some(None, "verified", "legacy_verified", "failed")}

    def user(id: str) -> JSON:
        address = {"email_normalized": some(None, id), "email_domain": some(*names)}
        return mirrored(id) | address | {"email_verified": some(None, True, True, False)}

    def join(organization_id: str, user_id: str) -> JSON:
        place = {"organization_id": organization_id, "user_id": user_id}
        state = some("pending", "blocked", "undone", "joined")
        return place | {"state": state, "reason": "by ann", "cause": "event", "cause_id": "event_1"}

    def own(organization_id: str) -> JSON:
        switches = {"auto_join": some(None, True, False), "default_role": some(None, "admin")}
        return {"organization_id": organization_id, **switches, "who": "ann", "why": "why"}

    def invitation(n: int) -> JSON:
        place = {"organization_id": some(None, *workspaces), "email_normalized": some(None, *people)}
        status = some(None, "pending", "pending", "revoked", "accepted", "expired", "sent")
        expires_at = some(None, datetime(2026, 1, 1, tzinfo=UTC), datetime(9998, 1, 1, tzinfo=UTC))
        return mirrored(f"invitation_{n}") | place | {"status": status, "expires_at": expires_at}

    unblocked = {"who": "ann", "why": "why"}
    return {
        Organization: [mirrored(id) for id in workspaces[:-1]],
        User: [user(id) for id in known],
        UserAddress: [
            {"user_id": id, "email_hash": f"hash_{n}"} for id in known for n in range(30) if dice.random() < 0.05
        ],
        Membership: [membership(n) for n in range(200)],
        UnblockedMembership: [{"membership_id": f"om_{n}", **unblocked} for n in range(200) if dice.random() < 0.6],
        Join: [join(*pair) for pair in itertools.product(workspaces, people) if dice.random() < 0.08],
        Invitation: (invitations := [invitation(n) for n in range(60)]),
        InvitedAddress: [
            {"invitation_id": row["id"], "email_hash": f"hash_{n}"}
            for row in invitations
            if row["email_normalized"]
            for n in dice.sample(range(35), 2)
        ],
        UnblockedInvitation: [
            {"invitation_id": row["id"], "status": some(row["status"] or "", "pending"), **unblocked}
            for row in invitations
            if dice.random() < 0.2
        ],
        Domain: [domain(n) for n in range(100)],
        WorkspaceSettings: [own(id) for id in workspaces[:4]],
        PublicDomain: [{"domain": names[0]}],
    }
