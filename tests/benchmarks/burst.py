"""Burst: very many events at once, of one organization or of thousands, most of them of a few."""

import random
from collections.abc import Iterator
from itertools import accumulate

from tests.benchmarks.drain import drained, filled
from tests.benchmarks.runner import OURS, Mark, Row, Sample
from tests.benchmarks.servers import Bench
from tests.support import JSON, made

SPREADS = (1, 100, 5_000)
SLOWEST = "slowest of the three rates, of the fastest"
PEOPLE = 20_000
"""As many in each burst, so that only how they are spread differs, and not how many rows are written."""
OWN_SHARE = 0.1
"""Of events about the organization itself, so that one row is written again and again."""


def rows(bench: Bench) -> Iterator[Row]:
    """Yield one row for each kind of database; the three bursts are drained in turn."""
    number = bench.size(100_000, 300)
    stories = {spread: burst(number, spread) for spread in SPREADS}
    for kind in bench.kinds:

        def ours(kind: str = kind) -> Sample:
            rates: dict[str, float] = {}
            for spread, events in stories.items():
                with filled(bench, kind, events) as url:
                    rates[f"events/s of {spread:,}"] = drained(bench, url, number)
            return {**rates, SLOWEST: min(rates.values()) / max(rates.values())}

        shown = [Mark(f"events/s of {spread:,}") for spread in SPREADS]
        what = f"burst, {kind}: {number:,} events over 1, 100, 5,000 organizations"
        yield Row(what, {OURS: ours}, [Mark(SLOWEST, least=0.8), *shown], most_rounds=3)


def burst(number: int, organizations: int) -> list[JSON]:
    """Return `number` events about the same people; the organization of rank n has 1/n of the first one's (Zipf)."""
    dice = random.Random(organizations)
    names, weights = range(organizations), list(accumulate(1 / rank for rank in range(1, organizations + 1)))
    owners = dice.choices(names, cum_weights=weights, k=PEOPLE)
    return [_event(place, owners, dice) for place in range(number)]


def _event(place: int, owners: list[int], dice: random.Random) -> JSON:
    about, person = {"event_id": f"event_burst_{place}"}, dice.randrange(PEOPLE)
    organization = f"org_{owners[person]}"
    if dice.random() < OWN_SHARE:
        return made("organization.updated", place, **about, id=organization, name=f"Company {place}")
    ids = {"id": f"om_{person}", "organization_id": organization, "user_id": f"user_{person}"}
    return made("organization_membership.updated", place, **about, **ids)
