"""Faults of an installation, each of which makes a condition hold (`worker.reports.conditions`)."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from flask.testing import FlaskClient
from sqlalchemy import Engine, insert, update

from models.database import in_transaction
from models.tables import (
    Drift,
    Event,
    Hook,
    HookDelivery,
    Join,
    MirrorState,
    NotifyTarget,
    Read,
    Revocation,
    Run,
    Tail,
    Tick,
)
from models.types import db_now, db_now_plus
from tests.support import accept, apply_all, made
from worker.bootstrap import CLAIM, Services
from worker.queue.doorbell import HOOKS, Doorbell
from worker.repair.schedule import CLOCK_TICK

Fault = Callable[[Services, FlaskClient], None]
"""Makes a condition hold, given the services and a client of their application."""


def execute(engine: Engine, statement: Any) -> None:
    in_transaction(engine, lambda tx: tx.execute(statement))


def on(statement: Callable[[], Any]) -> Fault:
    """A fault that is one statement. Times in it are computed when it runs."""
    return lambda services, _endpoint: execute(services.engine, statement())


def failed(services: Services, endpoint: FlaskClient) -> None:
    accept(endpoint, made("user.created", updated_at=None))
    apply_all(services.engine)


def conflict(services: Services, endpoint: FlaskClient) -> None:
    accept(endpoint, made("organization.created"), made("organization.created", id="org_other"))
    for number, owner in enumerate((made("organization.created")["data"]["id"], "org_other")):
        ids = {"id": f"org_domain_{number}", "organization_id": owner}
        accept(endpoint, made("organization_domain.created", domain="acme.example", state="verified", **ids))
    apply_all(services.engine)


def unmapped(services: Services, endpoint: FlaskClient) -> None:
    accept(endpoint, made("organization_membership.created", role={"slug": "owner"}, roles=[{"slug": "owner"}]))
    apply_all(services.engine)


def certificate(days: float) -> Fault:
    """Return the fault of a certificate that expires in `days` days; if negative, it has expired."""
    event = made("connection.saml_certificate_renewal_required")
    event["data"]["certificate"]["expiry_date"] = (datetime.now(UTC) + timedelta(days=days)).isoformat()

    def fault(services: Services, endpoint: FlaskClient) -> None:
        accept(endpoint, made("organization.created"), made("connection.activated"), event)
        apply_all(services.engine)

    return fault


def hook_failed(services: Services, _endpoint: FlaskClient) -> None:
    execute(services.engine, insert(Hook).values(name="sessions", cursor=1))
    about = {"kind": "user", "object_id": "user_1", "status": "failed"}
    execute(services.engine, insert(HookDelivery).values(hook="sessions", change_id=1, **about))


def queued(services: Services, _endpoint: FlaskClient) -> None:
    """A job in the lane of the hooks, which no worker serves."""
    Doorbell(services.redis, HOOKS).ring()


def redis_claimed(services: Services, _endpoint: FlaskClient) -> None:
    """A clock of another database that uses our keys."""
    services.redis.set(CLAIM, "another")


def gaps(services: Services, _endpoint: FlaskClient, number: int = 12) -> None:
    """Events from before the last webhook that only the events API returned."""
    rows = [{"id": f"event_{n}", "type": "user.updated", "source": "events_api"} for n in range(number)]
    times = {"api_at": db_now_plus(-1800), "occurred_at": db_now_plus(-9999999), "status": "done"}
    in_transaction(services.engine, lambda tx: tx.execute(insert(Event).values(times), rows))


def stop_webhooks(engine: Engine, last: float = 7200, api: float = 3600) -> None:
    """Make the last webhook `last` seconds old; `api` seconds ago only the events API returned three events."""
    execute(engine, update(Event).values(webhook_at=db_now_plus(-last), received_at=db_now_plus(-last)))
    rows = [{"id": f"event_{n}", "type": "user.updated", "source": "events_api", "status": "done"} for n in range(3)]
    times = {"api_at": db_now_plus(-api), "occurred_at": db_now_plus(-api - 60), "received_at": db_now_plus(-api)}
    in_transaction(engine, lambda tx: tx.execute(insert(Event).values(times), rows))


def drifted(number: int, finding: str, action: str) -> Fault:
    """Differences that another resync found. Withheld ones are about live users: only those are reported."""

    def seed(services: Services, endpoint: FlaskClient) -> None:
        if action == "withheld":
            accept(endpoint, *(made("user.created", id=f"user_{n}") for n in range(number)))
            apply_all(services.engine)
        run = {"id": "run2", "task": "resync", "requested_by": "clock", "status": "done", "finished_at": db_now()}
        row = {"run_id": "run2", "kind": "user", "finding": finding, "action": action}
        found = [row | {"object_id": f"user_{n}"} for n in range(number)]
        execute(services.engine, insert(Run).values(run))
        in_transaction(services.engine, lambda tx: tx.execute(insert(Drift), found))

    return seed


def joined(state: str) -> Fault:
    row = {"organization_id": "org_1", "user_id": "user_1", "state": state, "cause": "event", "cause_id": "event_1"}
    return on(lambda: insert(Join).values(row))


clock_stopped = on(lambda: update(Tick).where(Tick.name == CLOCK_TICK).values(at=db_now_plus(-300)))
resync_failed = on(lambda: update(Run).values(status="failed", error="/organizations: 500"))
resync_late = on(lambda: update(Run).values(created_at=db_now_plus(-99 * 3600), finished_at=db_now_plus(-98 * 3600)))
unread = on(
    lambda: insert(Read).values(kind="user", object_id="user_1", reason="a test", attempts=5, error="no answer")
)
sessions_not_revoked = on(
    lambda: insert(Revocation).values(
        organization_id="org_1",
        user_id="user_1",
        kind="user",
        object_id="user_1",
        since=db_now_plus(-400),
        created_at=db_now_plus(-400),
        error="/user_management/sessions: ServerError 500",
    )
)
notify_failed = on(lambda: insert(NotifyTarget).values(name="json", attempts=3, error="answered 404"))
bound_missed = on(lambda: update(Tail).values(complete_at=db_now_plus(-120)))
tail_slowed = on(lambda: update(Tail).values(interval_seconds=20.0))
role_map_withheld = on(
    lambda: update(MirrorState).values(withheld_role_map={"role_map": {}, "promotions": 30, "members": 100})
)
backfilling = on(lambda: update(MirrorState).values(backfilled_at=None))
