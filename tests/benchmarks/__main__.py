"""`python -m tests.benchmarks`: how near the product comes to what this machine permits, as one table of ratios."""

import sys
from pathlib import Path

import click
from rich.console import Console

from tests.benchmarks.deliveries import GENERATOR
from tests.benchmarks.rows import ROWS
from tests.benchmarks.runner import Result, machine, measure, show, write_json
from tests.benchmarks.servers import quiet, servers


@click.command()
@click.option("--rows", default=",".join(ROWS), help="Which of them, with commas; default: all.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--json", "file", type=click.Path(dir_okay=False, path_type=Path), default=Path("bench.json"))
@click.option("--tiny", is_flag=True, help="Only to see that every row still runs.")
@click.option("--large", is_flag=True, help="Also with tables of many gigabytes.")
def main(rows: str, rounds: int, file: Path, *, tiny: bool, large: bool) -> None:
    """Measure and print; exit code 1 if a mark is missed."""
    quiet()
    names = [name.strip() for name in rows.split(",")]
    if unknown := [name for name in names if name not in ROWS]:
        raise click.BadParameter(f"{', '.join(unknown)}; there are {', '.join(ROWS)}")
    about = machine() | {"load generator": GENERATOR}
    results: list[Result] = []
    with servers(tiny=tiny, large=large) as bench:
        for name in names:
            for row in ROWS[name](bench):
                results += measure(row, rounds, lambda line: click.echo(line, err=True))
                write_json(file, results, about)
    console = Console(width=200, highlight=False)
    show(results, console)
    console.print(", ".join(f"{name}: {value}" for name, value in about.items()))
    sys.exit(int(any(one.reached is False for one in results)))


if __name__ == "__main__":
    main()
