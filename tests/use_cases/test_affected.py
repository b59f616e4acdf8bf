"""Groups of failures, and the lists that read only as many rows as they show."""

from collections.abc import Iterable
from functools import partial

from sqlalchemy import Engine, insert

from models.database import in_transaction
from models.tables import Cause, Change, DeliveryStatus, Event, EventSource, EventStatus, HookDelivery, Mirrored
from tests.benchmarks.access import fill, plans
from tests.support import JSON
from worker.hooks import operate
from worker.kinds.organization import Organization
from worker.mirror import auto_join_policy
from worker.reports import listings
from worker.reports.listings import Place


def add(engine: Engine, table: type[Event | Change | HookDelivery | Mirrored], rows: Iterable[JSON]) -> None:
    in_transaction(engine, lambda tx: tx.execute(insert(table), list(rows)))


def test_a_group_names_the_three_workspaces_with_the_most_failures(engine: Engine) -> None:
    about = [f"org_{n}" for n in range(5) for _ in range(n + 1)] + [None]
    add(engine, Organization, [{"id": "org_4", "name": "Acme"}])
    rows = [{"id": f"event_{n}", "organization_id": id, "fingerprint": "f"} for n, id in enumerate(about)]
    rows.append({"id": "event", "organization_id": None, "fingerprint": "g"})
    failed = {"type": "user.updated", "source": EventSource.WEBHOOK, "status": EventStatus.FAILED, "error": "no email"}
    add(engine, Event, [failed | row for row in rows])
    changed = {"kind": "user", "object_id": "user", "after": {}, "cause": Cause.EVENT, "cause_id": "e"}
    add(engine, Change, [changed | {"id": n, "organization_id": id} for n, id in enumerate(about, start=1)])
    delivery = {"hook": "h", "kind": "user", "object_id": "user", "status": DeliveryStatus.FAILED, "fingerprint": None}
    add(engine, HookDelivery, [delivery | {"change_id": n} for n, _ in enumerate(about, start=1)])
    group, other = listings.failures(engine)
    (deliveries,) = operate.failures(engine)
    for found, name in ((group, "events"), (deliveries, "deliveries")):
        assert (found[name], found["affected"]) == (16, 5)
        assert [(each["organization_id"], each["name"], each[name]) for each in found["workspaces"]] == [
            ("org_4", "Acme", 5),
            ("org_3", None, 4),
            ("org_2", None, 3),
        ]
    assert (other["events"], other["affected"], other["workspaces"]) == (1, 0, [])


def test_lists_page_in_the_database(engine: Engine) -> None:
    fill(engine, 2_000)  # of the first workspace, whose people have the domains of others, nobody is a member elsewhere
    for page_of in (listings.missing_members_page, listings.without_admin_page):
        first = page_of(engine, Place(limit=20))
        second = page_of(engine, Place(after=first.after, limit=20))
        back = page_of(engine, Place(before=second.before, limit=20))
        assert len(first.rows) == len(second.rows) == 20 and first.before is None
        assert back.rows == first.rows
    one = listings.missing_members_page(engine, Place()).rows[0]
    missing = auto_join_policy.missing_members(engine, 1_000, one["organization_id"])
    assert {row["organization_id"] for row in missing} == {one["organization_id"]}
    assert {row["default_role"] for row in missing} == {"member"}


def test_a_list_of_domains_takes_as_many_statements_as_one_domain(engine: Engine) -> None:
    fill(engine, 500)
    one, many = (len(plans(engine, partial(listings.list_domains, engine, limit=limit))) for limit in (1, 50))
    assert one == many
