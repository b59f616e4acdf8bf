"""The number of statements does not depend on the number of events in a batch, or of pages in a commit."""

from collections import Counter
from collections.abc import Callable, Iterable

import pytest
from sqlalchemy import Engine

from models.database import in_transaction
from models.tables import Listing, ListingState
from tests.support import JSON, NOON, apply_all, made, rows
from tests.support.actors import by
from tests.support.statements import statements
from tests.support.stories import store
from worker.inbox.drain import SMALL_BATCH
from worker.repair.resync import listings
from worker.repair.resync.apply_page import apply_pages
from worker.repair.resync.listings import Key, Open
from worker.repair.resync.resync import start
from worker.workos_api.client import Page

FEW, MANY = SMALL_BATCH + 8, 240
"""Numbers of events. Each fills one batch that is recorded, on both databases."""


def version(numbers: range, at: int, what: str = "updated") -> Iterable[JSON]:
    """Yield as many events as `numbers`, about companies of one member and one domain each."""
    for number in numbers[::4]:
        organization, user = f"org_{number}", f"user_{number}"
        yield made(f"organization.{what}", at, id=organization, name=f"Company {number}, {at}", domains=[])
        yield made(f"user.{what}", at, id=user, email=f"person{number}@acme{at}.example")
        yield made(f"organization_membership.{what}", at, id=f"om_{number}", organization_id=organization, user_id=user)
        about = {"id": f"od_{number}", "organization_id": organization, "domain": f"company{number}.example"}
        yield made(f"organization_domain.{what}", at, **about)


Events = Callable[[range], Iterable[JSON]]
CASES: dict[str, tuple[Events, Events]] = {
    "new": (lambda _: (), lambda of: version(of, 5)),
    "newer": (lambda of: version(of, 5), lambda of: version(of, 9)),
    "deleted": (lambda of: version(of, 5), lambda of: version(of, 9, "deleted")),
    "late": (lambda of: version(of, 5), lambda of: version(of, 3)),
    "after the delete": (lambda of: version(of, 5, "deleted"), lambda of: version(of, 9)),
}


@pytest.mark.parametrize("case", CASES)
def test_statements_of_a_batch(case: str, engine: Engine) -> None:
    before, after = CASES[case]
    apply_all(engine)  # the first drain of a process begins with another statement

    def sent(numbers: range) -> Counter[str]:
        if earlier := list(before(numbers)):
            store(engine, earlier)
            apply_all(engine)
        store(engine, after(numbers))
        with statements(engine) as found:
            apply_all(engine)
        return Counter(" ".join(statement.split())[:100] for statement in found)

    assert sent(range(FEW)) == sent(range(1_000, 1_000 + MANY))


def test_statements_of_a_commit_of_a_resync(engine: Engine) -> None:
    run_id = start(engine, by("test", "why"))

    def sent(number: int) -> int:
        parents = [f"org_{number}_{place}" for place in range(number)]
        in_transaction(engine, listings.add, run_id, "memberships", parents)
        pages = [(Open(Key("memberships", parent), None, NOON), Page([], None, NOON)) for parent in parents]
        with statements(engine) as found:
            in_transaction(engine, apply_pages, run_id, pages, dry_run=False)
        return len(found)

    assert sent(50) == sent(5)
    states = {row["state"] for row in rows(engine, Listing) if row["parent"]}
    assert states == {ListingState.COMPLETE}
