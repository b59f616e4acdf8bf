"""What commands print: JSON or tables. Rows are dictionaries, by column name."""

from datetime import datetime

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from models.types import Record
from worker.mirror import change_feed

HEADINGS = {
    "saw": "found",
    "gaps": "missing webhooks",
    "late": "late webhooks",
    "silent_seconds": "seconds without a webhook",
    "complete_to": "complete up to",
    "auto_join": "auto-join",
    "auto_join_conflicts": "auto-join conflicts",
    "workos_role": "WorkOS role",
}
"""What a table calls a field whose name in JSON is not clear by itself."""


def heading(name: str) -> str:
    """Return what a table calls the field `name`."""
    return HEADINGS.get(name, name.replace("_", " "))


def count(number: int, noun: str) -> str:
    """Return a number with its noun: `1 event`, `2 events`. The plural of `noun` must end in `s`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def cell(value: object) -> Text:
    """Return `value` as plain text. Markup and control characters in customers' data have no effect on the terminal."""
    if value is None:
        return Text()
    text = value.isoformat(sep=" ", timespec="seconds") if isinstance(value, datetime) else str(value)
    return Text("".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text))


def json(value: object) -> None:
    """Print a value as JSON."""
    click.echo(change_feed.as_json(value))


def fields(record: Record) -> None:
    """Print a table with a line for each name and value."""
    table = Table(show_header=False)
    for name, value in record.items():
        table.add_row(name, cell(value))
    Console().print(table)


def table(columns: tuple[str, ...], records: list[Record], title: str | None = None) -> None:
    """Print a table with these columns of the rows."""
    table = Table(title=cell(title) if title else None)
    for column in columns:
        table.add_column(heading(column), overflow="fold")
    for row in records:
        table.add_row(*(cell(row[column]) for column in columns))
    Console().print(table)


def report(record: Record, *, as_json: bool = False) -> None:
    """Print a report as JSON, or as a table with a line for each name and value."""
    if as_json:
        json(record)
        return
    counts = {n: ", ".join(f"{n} {word}" for word, n in v.items()) for n, v in record.items() if isinstance(v, dict)}
    fields({heading(name): counts.get(name, value) for name, value in record.items()})


def rows(columns: tuple[str, ...], records: list[Record], *, as_json: bool, empty: str = "none") -> None:
    """Print rows as JSON with all columns, or as a table with these columns; `empty` if there are no rows."""
    if as_json:
        json(records)
    elif records:
        table(columns, records)
    else:
        click.echo(empty)
