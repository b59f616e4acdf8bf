"""SAML certificates of connections: when sign-in is about to fail, it is reported until the certificate is renewed."""

from collections.abc import Callable
from datetime import timedelta
from itertools import permutations

import pytest
from redis import Redis
from sqlalchemy import Engine, select

from models.database import read_transaction
from models.tables import Change, Read
from models.types import db_now
from models.views import sign_in_methods
from tests.support import JSON, event_row, made, minute, outcomes, rows, sample
from tests.support.mirror import ORG
from tests.support.ops import TOKEN, sign_in
from tests.support.resync import catch_up_with, deliver, read_due, resync
from webhooks.app import create_app
from worker.bootstrap import Services
from worker.kinds.saml_certificate import SamlCertificate
from worker.reports.condition import ActiveCondition
from worker.reports.conditions import active_conditions
from worker.reports.explain import explain
from worker.reports.health import check_health
from worker.sandbox import Sandbox
from worker.settings import Settings
from worker.workos_api.client import WorkOSClient

CONNECTION = sample("connection.activated")["data"]["id"]


def certificate(what: str, at: int, expires_at: str, *, type: str = "ResponseSigning", id: str = CONNECTION) -> JSON:
    event = made(f"connection.saml_certificate_{what}", at)
    event["data"]["connection"] = {"id": id, "organization_id": ORG}
    event["data"]["certificate"] |= {"certificate_type": type, "expiry_date": expires_at}
    return event


@pytest.fixture
def in_days(engine: Engine) -> Callable[[float], str]:
    """Returns the time in a number of days, by the database's clock, as WorkOS writes it."""
    with read_transaction(engine) as tx:
        now = tx.execute(select(db_now())).scalar_one()
    return lambda days: (now + timedelta(days=days)).isoformat()


@pytest.fixture
def reported(engine: Engine, redis: Redis) -> Callable[[], list[ActiveCondition]]:
    """Returns what is reported about certificates."""

    def find() -> list[ActiveCondition]:
        found = active_conditions(check_health(engine, redis, Settings(_env_file=None)))
        return [each for each in found if each.name == "certificate_expires"]

    return find


def test_any_order_of_events_gives_the_newest_expiry(engine: Engine) -> None:
    first = certificate("renewal_required", 1, minute(100))
    renewed = certificate("renewed", 2, minute(9000))
    again = certificate("renewal_required", 3, minute(9000))
    for number, order in enumerate(permutations((first, renewed, again))):
        data = {"connection": {"id": f"conn_{number}"}}
        for event in order:
            deliver(engine, [event | {"id": f"{event['id']}_{number}", "data": event["data"] | data}])
    found = rows(engine, SamlCertificate)
    assert {(row["expires_at"].isoformat(), row["event_at"].isoformat()) for row in found} == {
        (minute(9000).replace(".000Z", "+00:00"), minute(3).replace(".000Z", "+00:00"))
    }


@pytest.mark.long
def test_two_events_of_one_time_keep_the_same_row_and_read_nothing(engine: Engine) -> None:
    one, other = certificate("renewed", 1, minute(100)), certificate("renewed", 1, minute(200))
    deliver(engine, [other, one])
    [row] = rows(engine, SamlCertificate)
    assert row["event_id"] == max(one["id"], other["id"])
    assert {read["kind"] for read in rows(engine, Read)} == {"connection"}, "WorkOS cannot be asked for a certificate"


def test_expiry_is_a_warning_then_a_problem_until_the_certificate_is_renewed(
    engine: Engine, in_days: Callable[[float], str], reported: Callable[[], list[ActiveCondition]]
) -> None:
    deliver(engine, [made("organization.created"), made("connection.activated")])
    for at, days, severity in ((1, 31, []), (2, 29, ["warning"]), (3, -1, ["problem"])):
        deliver(engine, [certificate("renewal_required", at, in_days(days))])
        assert [each.severity for each in reported()] == severity
    [problem] = reported()
    assert problem.sentence.startswith("1 SAML certificate expired, the first at ") and CONNECTION in problem.sentence
    assert not problem.doubts_mirror
    deliver(engine, [certificate("renewal_required", 4, in_days(9), type="RequestSigning")])
    assert [each.severity for each in reported()] == ["problem", "warning"]
    deliver(engine, [certificate("renewed", 5, in_days(900))])
    assert [each.severity for each in reported()] == ["warning"]
    deliver(engine, [certificate("renewed", 6, in_days(900), type="RequestSigning")])
    assert reported() == []


@pytest.mark.parametrize("end", ["connection.deactivated", "connection.deleted", "organization.deleted"])
def test_expiry_of_a_connection_that_is_not_used_is_not_reported(
    engine: Engine, in_days: Callable[[float], str], reported: Callable[[], list[ActiveCondition]], end: str
) -> None:
    deliver(engine, [certificate("renewal_required", 1, in_days(9))])
    assert len(reported()) == 1, "the connection is not mirrored yet"
    deliver(engine, [made("organization.created"), made("connection.activated")])
    assert len(reported()) == 1
    deliver(engine, [made(end, 5)])
    assert reported() == []


def test_expiry_of_a_connection_that_workos_no_longer_has_is_not_reported(
    engine: Engine, workos: WorkOSClient, in_days: Callable[[float], str], reported: Callable[[], list[ActiveCondition]]
) -> None:
    deliver(engine, [certificate("renewal_required", 1, in_days(9))])
    assert len(reported()) == 1
    read_due(engine, workos)
    assert reported() == [] and rows(engine, Read) == []


def test_missing_connection_is_read(engine: Engine) -> None:
    deliver(engine, [certificate("renewal_required", 1, minute(100))])
    assert [(row["kind"], row["object_id"]) for row in rows(engine, Read)] == [("connection", CONNECTION)]


def test_unusable_certificate_event_fails_and_makes_nothing_uncertain(engine: Engine) -> None:
    event = certificate("renewed", 1, "soon")
    deliver(engine, [event])
    assert event_row(engine, event["id"])["error"] == "data.certificate.expiry_date: is not a time"
    assert rows(engine, Read) == []


def test_view_explain_and_page_show_the_first_expiry(local: Callable[..., Services]) -> None:
    services = local(ops_tokens=f"ann:{TOKEN}")
    engine = services.engine
    events = [
        certificate("renewed", 1, "2031-05-06T00:00:00.000Z"),
        certificate("renewed", 2, "2030-03-04T00:00:00.000Z", type="RequestSigning"),
        made("organization.created"),
        made("connection.activated"),
        made("connection.activated", id="conn_other"),
    ]
    deliver(engine, events)
    assert set(outcomes(engine, *events)) == {"applied"}
    expiry = {row["connection_id"]: row["certificate_expires_at"] for row in rows(engine, sign_in_methods)}
    assert expiry.pop("conn_other") is None
    assert [str(at) for at in expiry.values()] == ["2030-03-04 00:00:00+00:00"]
    shown = explain(engine, CONNECTION)
    assert shown is not None
    assert [step["what"] for step in shown["timeline"]].count("connection.saml_certificate_renewed") == 2
    browser = create_app(services).test_client()
    sign_in(browser)
    page = browser.get(f"/ops/workspaces/{ORG}?show=sign_in").get_data(as_text=True)
    assert "2030-03-04" in page and "2031-05-06" not in page
    assert {row["kind"] for row in rows(engine, Change)} == {"saml_certificate", "organization", "connection"}


def test_resync_leaves_certificates_alone(engine: Engine, sandbox: Sandbox, workos: WorkOSClient) -> None:
    world = sandbox.world
    made_there = world.create_connection(world.create_organization("Acme")["id"], "Okta")["id"]
    world.activate_connection(made_there)
    world.update_certificate(made_there, days=12)
    world.update_certificate(made_there, days=900, renewed=True)
    catch_up_with(engine, world)
    before = rows(engine, SamlCertificate)
    resync(engine, workos)
    assert rows(engine, SamlCertificate) == before and len(before) == 1
