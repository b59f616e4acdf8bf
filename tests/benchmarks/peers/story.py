"""A history whose outcome is known: late, duplicated and deleted; and the comparison of a database with it."""

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

from tests.benchmarks.peers.versions import Version

LATE = 0.01
DUPLICATED = 0.1
DELETED = 0.3
"""The share of the objects that are deleted in the end; those of events are of deliveries."""
VERSIONS = (3, 9)
"""Of an object, at least and at most."""
FAR = (200, 1_000)
"""How many deliveries later a late or repeated one comes, at least and at most: more than are in flight at once."""


@dataclass(frozen=True, slots=True)
class Story:
    """Deliveries in the order in which they are sent, and of each object its last version (None: it is deleted)."""

    deliveries: list[Version]
    truth: dict[int, int | None]

    def after_the_delete(self) -> int:
        """Return how many deleted objects have an older version as their last delivery."""
        last = {version.object: version for version in self.deliveries}
        return sum(number is None and not last[of].deleted for of, number in self.truth.items())


@dataclass(frozen=True, slots=True)
class Verdict:
    """Numbers of rows: not the newest version; missing; there although the object is deleted."""

    wrong: int
    lost: int
    resurrected: int


def compare(truth: Mapping[int, int | None], found: Mapping[int, int]) -> Verdict:
    """Compare live rows (object → number of the version) with what must be there.

    Raises:
        ValueError: a row is of an object that was never sent.
    """
    if unknown := found.keys() - truth.keys():
        raise ValueError(f"{len(unknown)} rows are of objects that were never sent")
    live = {one: number for one, number in truth.items() if number is not None}
    return Verdict(
        wrong=sum(found[one] != number for one, number in live.items() if one in found),
        lost=len(live.keys() - found.keys()),
        resurrected=len(found.keys() - live.keys()),
    )


def make_story(events: int, seed: int) -> Story:
    """Make a story of about `events` different events.

    A late event is delivered after a newer one of its object, which may be the delete. Each object has one at most.
    """
    dice = Random(seed)
    lives = [_life(place, dice) for place in range(events * 2 // sum(VERSIONS))]
    order = [version.object for life in lives for version in life]
    dice.shuffle(order)
    nexts = [iter(life) for life in lives]
    happened = [next(nexts[place]) for place in order]
    place_of = {version: place for place, version in enumerate(happened)}
    sent = [(float(place), version) for place, version in enumerate(happened)]
    for life in dice.sample(lives, min(len(lives), round(len(happened) * LATE))):
        older, newer = sorted(dice.sample(life, 2), key=lambda version: version.number)
        sent[place_of[older]] = (place_of[newer] + dice.randint(*FAR), older)
    again = dice.sample(sent, round(len(sent) * DUPLICATED))
    sent += [(place + dice.randint(*FAR), version) for place, version in again]
    sent.sort(key=lambda one: one[0])
    last = (life[-1] for life in lives)
    truth = {version.object: None if version.deleted else version.number for version in last}
    return Story([version for _, version in sent], truth)


def _life(of: int, dice: Random) -> list[Version]:
    number = dice.randint(*VERSIONS)
    deleted = dice.random() < DELETED
    return [Version(of, place, deleted=deleted and place == number - 1) for place in range(number)]
