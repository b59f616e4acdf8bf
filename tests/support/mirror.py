"""The ids of the recorded samples, and helpers that deliver and apply events one by one."""

from typing import Any

from flask.testing import FlaskClient
from sqlalchemy import Engine

from tests.support import (
    JSON,
    accept,
    apply_all,
    made,
    sample,
)

ORG = sample("organization.created")["data"]["id"]
USER = sample("user.created")["data"]["id"]
MEMBERSHIP = sample("organization_membership.created")["data"]["id"]
DOMAIN = sample("organization_domain.created")["data"]["id"]

MEMBER = {(ORG, USER, "member")}
ACME = {("acme.example", ORG)}


def take(endpoint: FlaskClient, engine: Engine, *events: JSON) -> None:
    """Deliver and apply each event in a drain of its own."""
    for event in events:
        accept(endpoint, event)
        apply_all(engine)


def grant(endpoint: FlaskClient, engine: Engine, **membership: Any) -> None:
    """Deliver the events of a workspace with one active member."""
    events = (
        made("organization.created"),
        made("user.created"),
        made("organization_membership.updated", **membership),
    )
    accept(endpoint, *events)
    apply_all(engine)
