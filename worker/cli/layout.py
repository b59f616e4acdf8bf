"""Lays out rows for a terminal: a table if they fit, otherwise a block of lines for each row.

Ids, words, numbers and times are never wrapped or cut. Rows are dictionaries, by column name. Widths are in terminal
cells. Names that customers chose may contain control characters, which have no effect on the terminal.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum, auto
from itertools import zip_longest
from typing import TYPE_CHECKING

import click
from rich.cells import cell_len, set_cell_size

if TYPE_CHECKING:
    from models.types import Record


LAYOUTS = ((False, False, 32, 2), (True, False, 16, 2), (True, False, 16, 1), (True, True, 16, 2))
"""Layouts of a table, the best first: are times ages, are types folded, the least width of names, the columns' gap."""
FOLDED = 24
"""The least width of a type that is folded."""
MIN_TEXT = 30
"""Cells that a text needs beside its row to be wrapped there. A longer text goes below the row if there are fewer."""
COLORS = {
    "ok": "green",
    "warning": "yellow",
    "pending": "yellow",
    "withheld": "yellow",
    "problem": "red",
    "failure": "red",
    "failed": "red",
}
"""The color of these words in a column."""
HEADINGS = {
    "saw": "found",
    "workos_role": "WorkOS role",
    "auto_join": "auto-join",
    "gaps": "missing webhooks",
    "late": "late webhooks",
    "event_at": "as of",
}
"""Titles of fields whose name in JSON is not clear by itself."""
AGES = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))


class Fit(Enum):
    """The ways in which a table may shorten a value that is too long."""

    WHOLE = auto()
    """Nothing: an id, a word, a number or a time."""
    CUT = auto()
    """Cut it, with "…" at the end: a name."""
    FOLD = auto()
    """Continue it on the next line after a dot or an underscore: an event type."""
    WRAP = auto()
    """Wrap it, or print it below the row: a text."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a list.

    Attributes:
        name: the key in the rows, the name in `--columns`, and the heading in piped output.
        heading: what people see; made from the name if empty.
        wide: whether only `--wide` and `--columns` show it.
        fit: what may happen to a long value.
    """

    name: str
    heading: str = ""
    wide: bool = field(default=False, kw_only=True)
    fit: Fit = field(default=Fit.WHOLE, kw_only=True)

    @property
    def label(self) -> str:
        """The heading that people see."""
        return self.heading or HEADINGS.get(self.name) or self.name.removesuffix("_at").replace("_", " ")


def paint(text: str, *, fg: str | None = None, bold: bool = False, dim: bool = False) -> str:
    """Return `text` in a style, as `click.style` does. `click.echo` removes it where there are no colors."""
    return click.style(text, fg=fg, bold=bold or None, dim=dim or None) if fg or bold or dim else text


def plain(text: str) -> str:
    """Return `text` with spaces for tabs, and a replacement for each other control character but line breaks."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text.replace("\t", " "))


def shown(value: object, *, age: bool = False) -> str:
    """Return a value for people; empty for None and empty values. With `age`, a time is how long ago it was."""
    match value:
        case None:
            return ""
        case datetime():
            return _age(value) if age else f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%SZ}"
        case bool():
            return "yes" if value else "no"
        case list():
            return plain(", ".join(map(_inner, value)))
        case dict():
            return plain("\n".join(f"{name.replace('_', ' ')}: {_inner(each)}" for name, each in value.items()))
    return plain(str(value))


def changed(fields: Mapping[str, Sequence[object]]) -> str:
    """Return a line for each field that changed, given its values before and after: `role: member → admin`."""
    lines = []
    for name, (before, after) in fields.items():
        if before is None and after is False:  # of a new object
            continue
        old, new = (plain(_inner(each)) if each is not None else "none" for each in (before, after))
        lines.append(f"{name}: {new}" if before is None else f"{name}: {old} → {new}")
    return "\n".join(lines)


def _inner(value: object) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list | bool | None) else str(value)


def _age(at: datetime) -> str:
    """Return how long ago a time was, such as `5m`; `in 5m` if it has not come yet."""
    seconds = (datetime.now(UTC) - at).total_seconds()
    unit, size = next(((unit, size) for unit, size in AGES if abs(seconds) >= size), AGES[-1])
    return f"{'in ' if seconds < 0 else ''}{abs(seconds) // size:.0f}{unit}"


def wrap(text: str, width: int, *, whole: bool = False) -> list[str]:
    """Return the lines of a text, wrapped at spaces, indented as in the text.

    A word that is longer than a line is broken, or with `whole` left as it is.
    """
    lines = []
    for paragraph in text.split("\n"):
        words = paragraph.lstrip(" ")
        indent = paragraph[: min(len(paragraph) - len(words), width // 2)]
        line = ""
        for word in words.split(" "):
            if line and cell_len(indent + line) + 1 + cell_len(word) <= width:
                line += f" {word}"
                continue
            if line:
                lines.append((indent + line).rstrip())
            line = word
            while not whole and cell_len(indent + line) > width:
                head = set_cell_size(line, max(width - cell_len(indent), 1))
                lines.append(indent + head)
                line = line[len(head) :]
        lines.append((indent + line).rstrip())
    return lines


def table(
    columns: Sequence[Column], rows: Sequence[Record], width: int, *, chosen: bool = False, lead: int = 0
) -> Iterator[str]:
    """Yield the lines of some rows: of a table if each row fits, otherwise of blocks.

    A column without a value in any row is left out, unless the columns are `chosen`. With `lead`, rows are always
    blocks, as `blocks` returns them.
    """
    if not chosen:
        columns = [c for c in columns if any(shown(row[c.name]) for row in rows)]
    if lead:
        yield from blocks(columns, rows, width, lead=lead)
        return
    for ages, folded, least_name, gap in LAYOUTS if rows else ():
        laid = _Table(columns, rows, ages=ages, folded=folded, least_name=least_name, gap=gap)
        if laid.least <= width:
            yield from laid.lines(width)
            return
    yield from blocks(columns, rows, width)


class _Table:
    """The cells of a table, and the widths of its columns."""

    def __init__(
        self, columns: Sequence[Column], rows: Sequence[Record], *, ages: bool, folded: bool, least_name: int, gap: int
    ) -> None:
        self._columns = [c for c in columns if c.fit is not Fit.WRAP]
        self._texts = [c for c in columns if c.fit is Fit.WRAP]
        self._rows = rows
        self._gap = " " * gap
        self._cells = [[shown(row[c.name], age=ages).replace("\n", " ") for c in self._columns] for row in rows]
        of_columns = zip(*([c.label for c in self._columns], *self._cells), strict=True)
        self._widths = [max(map(cell_len, cells)) for cells in of_columns]
        shortened = {Fit.CUT: least_name} | ({Fit.FOLD: FOLDED} if folded else {})
        self._least = [
            min(width, max(shortened.get(c.fit, width), len(c.label)))
            for c, width in zip(self._columns, self._widths, strict=True)
        ]
        self._numeric = [all(type(row[c.name]) in (int, type(None)) for row in rows) for c in self._columns]

    @property
    def least(self) -> int:
        """The width of the table without texts, with names cut."""
        return sum(self._least) + len(self._gap) * (len(self._columns) - 1)

    def lines(self, width: int) -> Iterator[str]:
        """Yield the lines, none longer than `width`, which is at least `least`."""
        widths, spare = [], width - self.least
        for natural, least in zip(self._widths, self._least, strict=True):
            widths.append(min(natural, least + spare))
            spare -= widths[-1] - least
        used = width - spare + len(self._gap)
        room = width - used
        beside = [c for c in self._texts if len(self._texts) == 1 and self._is_beside(c, room)]
        heads = [_aligned(c.label, w, right) for c, w, right in zip(self._columns, widths, self._numeric, strict=True)]
        yield paint(self._gap.join([*heads, *(c.label for c in beside)]).rstrip(), bold=True)
        for row, cells in zip(self._rows, self._cells, strict=True):
            lines = list(self._row(cells, widths))
            texts = [(c, text) for c in self._texts if (text := shown(row[c.name]))]
            if beside and texts and (room >= MIN_TEXT or cell_len(texts[0][1]) <= room):
                indent = " " * (used - len(self._gap))
                for line, text in zip_longest(lines, wrap(texts[0][1], room)):
                    yield f"{line or indent}{self._gap}{text or ''}".rstrip()
                continue
            yield from (line.rstrip() for line in lines)
            for c, text in texts:
                yield from _labelled(c, text, width, label=0, indent=4)

    def _row(self, cells: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
        """Yield the lines of a row without its texts: one, or more if a type is folded."""
        parts = [
            _fold(text, width) if c.fit is Fit.FOLD else [text]
            for c, text, width in zip(self._columns, cells, widths, strict=True)
        ]
        for line in zip_longest(*parts, fillvalue=""):
            aligned = (_aligned(*cell) for cell in zip(line, widths, self._numeric, strict=True))
            yield self._gap.join(paint(text, fg=COLORS.get(text.strip())) for text in aligned)

    def _is_beside(self, column: Column, room: int) -> bool:
        """Return whether a text is beside any row."""
        shortest = min((cell_len(text) for row in self._rows if (text := shown(row[column.name]))), default=0)
        return room >= MIN_TEXT or max(shortest, len(column.label)) <= room


def _fold(text: str, width: int) -> list[str]:
    lines = [""]
    for part in re.findall(r"[^._]*[._]?", text):
        if cell_len(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return lines


def _aligned(text: str, width: int, right: bool) -> str:
    if right:
        return " " * (width - cell_len(text)) + text
    if cell_len(text) > width:
        return set_cell_size(text, width - 1) + "…"
    return text + " " * (width - cell_len(text))


def blocks(columns: Sequence[Column], rows: Sequence[Record], width: int, *, lead: int = 0) -> Iterator[str]:
    """Yield a line for each value that is not empty, and an empty line between rows.

    With `lead`, the values of this number of columns are the first line, without their headings.
    """
    for place, row in enumerate(rows):
        if place:
            yield ""
        headline = [text for c in columns[:lead] if (text := shown(row[c.name]))]
        for line in wrap("  ".join(headline), width, whole=True) if headline else ():
            yield paint(line, bold=True)
        filled = [(c, text) for c in columns[lead:] if (text := shown(row[c.name]))]
        label = max((cell_len(c.label) for c, _ in filled), default=0)
        for c, text in filled:
            yield from _labelled(c, text, width, label=label, indent=2 if lead else 0)


def _labelled(column: Column, text: str, width: int, *, label: int, indent: int) -> Iterator[str]:
    """Yield a value beside its heading, or below it if the value has lines or words that are too long."""
    head = f"{' ' * indent}{column.label.ljust(label)}  "
    room = width - cell_len(head)
    whole = column.fit is Fit.WHOLE
    beside = max(map(cell_len, text.split())) <= room and not any(line.startswith(" ") for line in text.split("\n"))
    if not beside:
        yield paint(head.rstrip(), dim=True)
        head, room = " " * (indent + 2), width - indent - 2
    first, *rest = wrap(text, room, whole=whole)
    yield paint(head, dim=beside) + paint(first, fg=COLORS.get(first))
    yield from (f"{' ' * cell_len(head)}{line}" for line in rest)


def findings(found: Iterable[tuple[str, str, str]], width: int) -> Iterator[str]:
    """Yield the lines of what is wrong: the severity of each, a sentence, and below it the remedy."""
    for severity, sentence, remedy in found:
        head, indent = f"{severity}  ", " " * (len(severity) + 2)
        first, *rest = wrap(plain(sentence), width - len(head))
        yield paint(head, fg=COLORS.get(severity), bold=True) + first
        yield from (indent + line for line in rest)
        for place, line in enumerate(wrap(plain(remedy), width - len(head) - 2)):
            yield f"{indent}{'  ' if place else '→ '}{line}"


def headline(severity: str, text: str, width: int) -> Iterator[str]:
    """Yield the first lines of a report: a severity in its color, and a sentence."""
    for line in wrap(f"{severity.upper()}: {text}", width):
        yield paint(line, fg=COLORS[severity], bold=True)
