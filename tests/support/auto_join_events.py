"""Events of one person, one workspace and one domain, and the resulting auto-join states."""

from typing import Any

from sqlalchemy import Engine

from models.access import auto_join_for
from models.database import read_transaction, session
from models.tables import AutoJoin, Change
from tests.support import JSON, made, rows
from worker.kinds.domain import Domain
from worker.kinds.membership import Membership
from worker.reports.access import access_of, domain_states

ANN, ORG, RIVAL = "user_ann", "org_acme", "org_rival"
EMAIL, NEW = "ann@acme.example", "new@acme.example"


def org(verb: str = "created", at: int = 0, id: str = ORG) -> JSON:
    return made(f"organization.{verb}", at, id=id, name=id, domains=[])


def user(verb: str = "created", at: int = 0, **data: Any) -> JSON:
    ann: JSON = {"id": ANN, "email": EMAIL, "email_verified": True}
    return made(f"user.{verb}", at, **ann | data)


def member(verb: str = "created", at: int = 0, id: str = "om_1", role: str = "member", **data: Any) -> JSON:
    place: JSON = {"id": id, "organization_id": ORG, "user_id": ANN, "status": "active"}
    slugs = data.pop("roles", [role])
    roles: JSON = {"role": {"slug": slugs[0]}, "roles": [{"slug": slug} for slug in slugs]}
    return made(
        f"organization_membership.{verb}", at, **place | roles | {"created_at": f"2025-07-01T12:{at:02}:00Z"} | data
    )


def domain(verb: str = "verified", at: int = 0, id: str = "org_domain_1", **data: Any) -> JSON:
    state = {"verified": "verified", "created": "pending"}.get(verb, "verified")
    return made(
        f"organization_domain.{verb}",
        at,
        **{"id": id, "organization_id": ORG, "domain": "acme.example", "state": state} | data,
    )


def failed(at: int, id: str = "org_domain_1", reason: str = "domain_verification_period_expired") -> JSON:
    event = made("organization_domain.verification_failed", at, id=id, organization_id=ORG, domain="acme.example")
    event["data"]["reason"] = reason
    return event


BOTH = [org(), user()]
IN = [*BOTH, member()]
ON = [org(), domain()]


def answered(engine: Engine, email: str) -> str | None:
    with session(engine) as opened:
        found = auto_join_for(opened, email)
    return found.organization_id if found else None


def reasons(engine: Engine) -> set[str]:
    """The reasons of all memberships and domains."""
    with read_transaction(engine) as tx:
        return {row["why"] for row in (*access_of(tx, Membership.id != ""), *domain_states(tx, Domain.id != ""))}


# The states and their history


def states(engine: Engine) -> dict[str, str]:
    return {row["domain_id"]: row["state"] for row in rows(engine, AutoJoin)}


def history(engine: Engine, id: str) -> list[tuple[str, str | None, str]]:
    """State, reason and cause of each step of a domain's auto-join."""
    found = [row for row in rows(engine, Change) if row["kind"] == "domain" and row["object_id"] == id]
    steps = [(row["after"]["auto_join"], row["after"]["auto_join_reason"], row["cause"]) for row in found]
    was = [(row["before"] or {}).get("auto_join") for row in found]
    assert was[1:] == [state for state, _, _ in steps][:-1], "each step starts from the state before it"
    return steps
