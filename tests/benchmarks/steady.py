"""Whether a measured series stays flat: compares its last third with its first."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

SHARE = 0.1
LEAST = {"MB": 4.0, "keys": 20.0, "s": 1.0}
"""Growth below this, by unit, does not count: caches fill, and a sample may be taken during a batch."""


@dataclass(frozen=True, slots=True)
class Steady:
    """One series: its name (which ends with its unit), and its medians. `whole`: every sample has a value."""

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


def steady(samples: Sequence[dict[str, float]]) -> list[Steady]:
    """Return one series for each name of the samples (name → value, in order of time).

    Raises:
        ValueError: there are fewer than three samples.
    """
    if len(samples) < 3:
        raise ValueError("at least three samples are needed")
    names = dict.fromkeys(name for sample in samples for name in sample)
    return [_one(name, [sample[name] for sample in samples if name in sample], len(samples)) for name in names]


def _one(name: str, values: list[float], samples: int) -> Steady:
    third = -(-len(values) // 3)
    return Steady(name, median(values[:third]), median(values[-third:]), whole=len(values) == samples)
