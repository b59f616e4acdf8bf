"""The views decide who has access, auto-joins or is blocked. Python code that explains this must agree."""

import random

import pytest
from sqlalchemy import Engine, select

from models.database import in_transaction, read_transaction, write_transaction
from models.tables import InvitedAddress, UserAddress
from models.views import auto_join_blocks
from tests.support import access, joins, rows
from tests.support.actors import by
from tests.support.random_rows import put_random_rows
from worker.kinds.domain import Domain
from worker.kinds.membership import Membership
from worker.mirror import auto_join_policy
from worker.mirror.auto_join_policy import workspace_settings
from worker.reports.access import access_of, domain_states, invitation_states

NEWER = "a newer membership of the same person in this workspace takes precedence"


@pytest.fixture(params=[3, 5, 8])
def random_mirror(engine: Engine, request: pytest.FixtureRequest) -> Engine:
    """A mirror with random rows. These seeds give a person two active memberships in one workspace."""
    in_transaction(engine, put_random_rows, random.Random(request.param))
    return engine


def test_domain_state_agrees_with_auto_join_view(random_mirror: Engine) -> None:
    with read_transaction(random_mirror) as tx:
        states = domain_states(tx, Domain.id != "")
        settings = {owner: workspace_settings(tx, owner) for _, owner in joins(random_mirror)}
    names = {row["id"]: row["normalized"] for row in rows(random_mirror, Domain)}
    on = {(names[row["id"]], row["organization_id"]) for row in states if row["auto_join"]}
    assert on == joins(random_mirror) != set()
    assert {row["state"] for row in states if row["auto_join"]} == {"verified"}
    assert "not in effect yet" not in {row["why"] for row in states}, "each has a reason"
    assert all(shown["auto_join"] for shown in settings.values())


def test_explained_access_agrees_with_members_view(random_mirror: Engine) -> None:
    with read_transaction(random_mirror) as tx:
        found = access_of(tx, Membership.user_id.is_not(None))
    entered = {(row["organization_id"], row["user_id"], row["role"]) for row in found if row["access"]}
    assert entered == access(random_mirror) != set()
    places = {place[:2] for place in entered}
    outranked = {(row["organization_id"], row["user_id"]) for row in found if row["why"] == NEWER}
    assert outranked and outranked <= places


def test_explained_invitations_agree_with_blocks_view(random_mirror: Engine) -> None:
    with read_transaction(random_mirror) as tx:
        states = invitation_states(tx)
    hashes: dict[str, set[str]] = {}
    for row in rows(random_mirror, InvitedAddress):
        hashes.setdefault(row["invitation_id"], set()).add(row["email_hash"])
    explained = {
        (row["organization_id"], digest) for row in states if row["blocks"] for digest in hashes.get(row["id"], ())
    }
    of_addresses = {digest for found in hashes.values() for digest in found}
    blocked = {
        (row["organization_id"], row["email_hash"])
        for row in rows(random_mirror, auto_join_blocks)
        if row["reason"].startswith("invitation ") and row["email_hash"] in of_addresses
    }
    assert explained and explained <= blocked
    users = {(row["user_id"], row["email_hash"]) for row in rows(random_mirror, UserAddress)}

    def addresses_of_people_with(digests: set[str]) -> set[str]:
        people = {user for user, own in users if own in digests}
        return {own for user, own in users if user in people}

    for organization_id, digest in blocked - explained:  # of the invited person, or of someone who shares an address
        shared = addresses_of_people_with(addresses_of_people_with({digest}))
        assert any((organization_id, other) in explained for other in shared)


@pytest.mark.long
def test_unblocking_removes_every_block(random_mirror: Engine) -> None:
    view = auto_join_blocks.c
    blocked = {
        (row["organization_id"], row["user_id"]) for row in rows(random_mirror, auto_join_blocks) if row["user_id"]
    }
    assert blocked
    for place in sorted(blocked):
        with read_transaction(random_mirror) as tx:
            here = select(view.reason).where(view.organization_id == place[0], view.user_id == place[1])
            reasons = sorted(set(tx.execute(here).scalars()))
        if reasons:  # not unblocked with someone of the same address before
            assert auto_join_policy.unblock(random_mirror, *place, by("ann", "why")) == reasons
        with write_transaction(random_mirror) as tx:
            assert tx.execute(here).all() == []
