"""The output of commands: for people on a terminal, as tab-separated lines elsewhere, or as JSON.

A list command declares its columns once, with `listing`. The answer goes to standard output, notes to standard error.
"""

from __future__ import annotations

import functools
import json as json_text
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from worker.cli import layout
from worker.cli.layout import Column
from worker.lazy import lazy_imports

with lazy_imports():
    from worker import json_format

if TYPE_CHECKING:
    from models.types import Record

ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
"""Characters that end a cell or a line of tab-separated output."""


def count(number: int, noun: str) -> str:
    """Return a number with its noun: `1 event`, `2 events`. The plural of `noun` must end in `s`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def counted(numbers: Mapping[str, int] | None) -> str:
    """Return numbers with what they count: `2 stale, 1 missing`; empty if there are none."""
    return ", ".join(f"{number} {name}" for name, number in (numbers or {}).items())


def on_terminal() -> bool:
    """Return whether a person reads standard output."""
    return sys.stdout.isatty()


def width() -> int:
    """Return the width of the terminal in cells."""
    return shutil.get_terminal_size().columns


def note(text: str) -> None:
    """Print a remark that is not part of the answer."""
    click.echo(text, err=True)


def json(value: object) -> None:
    """Print a value as JSON."""
    click.echo(json_format.as_json(value))


def result(text: str, values: Record, *, as_json: bool) -> None:
    """Print what a command did: in words, or as JSON."""
    if as_json:
        json(values)
    else:
        click.echo(text)


def lines(text: Iterable[str]) -> None:
    """Print lines that are laid out for the terminal."""
    for line in text:
        click.echo(line)


def tab_separated(names: Sequence[str], rows: Iterable[Record]) -> None:
    """Print a line with the names, and one for each row."""
    click.echo("\t".join(names))
    for row in rows:
        click.echo("\t".join(_cell(row[name]) for name in names))


def _cell(value: object) -> str:
    """Return a value for programs: times as in JSON, and on one line."""
    match value:
        case None:
            return ""
        case datetime():
            return value.isoformat()
        case bool() | dict() | list():
            return json_text.dumps(value, default=_cell)
    return layout.plain(str(value).translate(ESCAPES))


def title(text: str) -> None:
    """Print the title of a part of a report, after an empty line, on a terminal; elsewhere only the empty line."""
    click.echo()
    if on_terminal():
        click.echo(layout.paint(text, bold=True))


def section(text: str, columns: Sequence[Column], rows: Sequence[Record], *, lead: int = 0) -> None:
    """Print a part of a report: rows below a title; nothing if there are no rows."""
    if not rows:
        return
    title(text)
    if on_terminal():
        lines(layout.table(columns, rows, width(), lead=lead))
    else:
        tab_separated([column.name for column in columns], rows)


def record(values: Record, *, as_json: bool = False) -> None:
    """Print one record: as JSON, or a line for each field. A terminal shows no empty fields."""
    if as_json:
        json(values)
    elif on_terminal():
        columns = [Column(name, fit=layout.Fit.WRAP) for name in values]
        lines(layout.blocks(columns, [values], width()))
    else:
        for name, value in values.items():
            click.echo(f"{name}\t{_cell(value)}")


@dataclass(frozen=True, slots=True)
class Listing:
    """Prints the rows of a list command as its options say.

    Attributes:
        columns: the columns to show.
        chosen: whether `--columns` names them.
        form: `json`, `jsonl`, or None.
        empty: what to say if there are no rows.
        lead: 0, or the number of columns that begin the block of each row.
    """

    columns: Sequence[Column]
    chosen: bool
    form: str | None
    empty: str
    lead: int

    @property
    def for_people(self) -> bool:
        """Whether a person sees the rows."""
        return self.form is None and on_terminal()

    @property
    def as_document(self) -> bool:
        """Whether `--json` is given."""
        return self.form == "json"

    def show(
        self, rows: Sequence[Record], *, title: str = "", document: object = None, people: Iterable[str] | None = None
    ) -> None:
        """Print rows.

        Args:
            rows: dictionaries by column name.
            title: a line above them on a terminal.
            document: what `--json` prints instead of the rows.
            people: lines that a terminal shows instead of the rows, unless `--columns` is given.
        """
        # A command may have fewer columns with some options. Those that the operator names are shown in any case.
        columns = [c for c in self.columns if self.chosen or not rows or c.name in rows[0]]
        names = [column.name for column in columns]
        if self.chosen:
            rows, document = [{name: row.get(name) for name in names} for row in rows], None
        if self.as_document:
            json(rows if document is None else document)
        elif self.form == "jsonl":
            for row in rows:
                click.echo(json_format.as_json(row, indent=None))
        elif not on_terminal():
            tab_separated(names, rows)
        else:
            lines(layout.paint(line, bold=True) for line in (layout.wrap(title, width()) if title else ()))
            laid = layout.table(columns, rows, width(), chosen=self.chosen, lead=0 if self.chosen else self.lead)
            lines(laid if people is None or self.chosen else people)
        self._note(len(rows))

    def _note(self, number: int) -> None:
        limit = click.get_current_context().params.get("limit")
        if number == 0 and self.form is None:
            note(self.empty)
        elif number == limit:
            note(f"only {limit} rows are shown; there may be more: use --limit")


def listing(*columns: Column, empty: str, lead: int = 0) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator of a list command: it adds the options of output, and the argument `out`, a `Listing`.

    Args:
        columns: all columns, in the order in which they are shown.
        empty: what to say if there are no rows.
        lead: for rows with long values, which are always blocks: the number of columns in the first line.
    """
    by_name = {column.name: column for column in columns}
    every = ", ".join(by_name)

    def choose(_context: click.Context, _option: click.Parameter, given: str | None) -> list[Column] | None:
        if given is None:
            return None
        names = dict.fromkeys(name.strip() for name in given.split(","))
        if unknown := [name for name in names if name not in by_name]:
            raise click.BadParameter(f"no column {', '.join(map(repr, unknown))}; the columns are {every}")
        return [by_name[name] for name in names]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @click.option("--wide", is_flag=True, help="Show all columns.")
        @click.option(
            "--columns", "chosen", metavar="NAMES", callback=choose, help=f"Show these columns, with commas: {every}."
        )
        @click.option("--json", "form", flag_value="json", help="Print JSON with all fields.")
        @click.option("--jsonl", "form", flag_value="jsonl", help="Print a line of JSON for each row.")
        @functools.wraps(command)
        def run(*args: Any, wide: bool, chosen: list[Column] | None, form: str | None, **given: Any) -> None:
            picked = chosen or [column for column in columns if wide or not column.wide]
            command(*args, out=Listing(picked, chosen is not None, form, empty, lead), **given)

        return run

    return decorate
