"""Whether what was measured again and again stays as it was: the last third against the first."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

SHARE = 0.1
LEAST = {"MB": 4.0, "keys": 20.0, "s": 1.0}
"""What is smaller than this, by unit, is no growth: caches fill, and a look may meet a batch in work."""


@dataclass(frozen=True, slots=True)
class Steady:
    """One series: its name (which ends with its unit), and its medians. `whole`: it was there at every look."""

    name: str
    first: float
    last: float
    whole: bool

    @property
    def most(self) -> float:
        """The highest last median that still counts as flat."""
        return self.first + max(SHARE * self.first, LEAST[self.name.rsplit(maxsplit=1)[-1]])

    @property
    def flat(self) -> bool:
        """Whether it has not grown."""
        return self.whole and self.last <= self.most


def steady(looks: Sequence[dict[str, float]]) -> list[Steady]:
    """Return how each series of the looks (name → value, in order of time) went on.

    Raises:
        ValueError: there are too few looks to tell.
    """
    if len(looks) < 3:
        raise ValueError("at least three looks are needed")
    names = dict.fromkeys(name for look in looks for name in look)
    return [_one(name, [look[name] for look in looks if name in look], len(looks)) for name in names]


def _one(name: str, values: list[float], looks: int) -> Steady:
    third = -(-len(values) // 3)
    return Steady(name, median(values[:third]), median(values[-third:]), whole=len(values) == looks)
