"""The tables of a drill, and the same as JSON."""

from collections import Counter
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.drill.judge import Verdict

Faults = Counter[tuple[str, str]]


def show(console: Console, faults: Faults, verdict: Verdict, notes: list[str]) -> None:
    """Print the faults by kind, the numbers of the verdict, and notes."""
    kinds = Table("fault", "struck", "times", title="Faults", title_justify="left")
    for (kind, target), times in sorted(faults.items()):
        kinds.add_row(kind, target, f"{times:,}")
    kinds.add_section()
    kinds.add_row("all", "", f"{faults.total():,}")
    numbers = Table("", "number", title="The drill", title_justify="left", show_header=False)
    for name, number in verdict.numbers.items():
        numbers.add_row(name, f"{number:,}")
    console.print(kinds, numbers, *notes, sep="\n", highlight=False)


def summary(faults: Faults, verdict: Verdict, **more: Any) -> dict[str, Any]:
    """Return it as JSON."""
    return {
        "faults": {f"{kind}: {target}": times for (kind, target), times in sorted(faults.items())},
        "numbers": {name.strip(): number for name, number in verdict.numbers.items()},
        "wrong": verdict.wrong,
        **more,
    }
