"""Pages of a sorted list, in both directions, with a total that is counted only as far as it is cheap."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Select, SQLColumnExpression, func, literal, or_, select

from models.database import plan_for_values
from models.rows import all_rows
from models.types import Record

MAX_COUNT = 10_000
"""A longer list is not counted to its end."""

Key = str | int
Only = Callable[[list[Record]], list[Record]]
"""Returns those of some rows that a list contains, in the same order; it may add columns."""


class Place(NamedTuple):
    """Which page of a list: the one after a row, the one before a row, or the first one.

    Attributes:
        after, before: the id of the row next to the page. At most one is given.
        reverse: sort the list the other way round.
    """

    after: Key | None = None
    before: Key | None = None
    limit: int = 20
    reverse: bool = False


class Page(NamedTuple):
    """Some rows of a list.

    Attributes:
        before, after: the ids for the previous and the next page; None if there is none.
        total: the number of rows of the whole list. Counting stops at `MAX_COUNT` + 1. None if nothing was counted.
    """

    rows: list[Record]
    before: Key | None
    after: Key | None
    total: int | None

    @property
    def shown_total(self) -> str:
        """The total for people, such as `1,234` or `10,000+`; empty if it was not counted."""
        if self.total is None:
            return ""
        return f"{MAX_COUNT:,}+" if self.total > MAX_COUNT else f"{self.total:,}"


def read_page(
    tx: Connection,
    query: Select[*tuple[Any, ...]],
    place: Place,
    value: SQLColumnExpression[Any],
    id: SQLColumnExpression[Any],
    *,
    newest_first: bool = False,
    counted: bool = True,
    only: Only | None = None,
) -> Page:
    """Return a page of a query, sorted by `value` and then by `id`, which the rows have as `id.key`.

    `value` must not be NULL, and a query that selects `value` by `id` must find it. The page is empty if the database
    no longer has the row that `place` names. Without `counted`, it has no total.

    `only` is a condition that takes long: it is called for the rows of the query until the page is full.
    """
    plan_for_values(tx)
    cursor = place.before if place.before is not None else place.after
    descending = (newest_first != place.reverse) != (place.before is not None)
    part = query if cursor is None else query.where(*beyond(value, id, cursor, descending=descending))
    order = (value.desc(), id.desc()) if descending else (value, id)
    found = _first(tx, part.order_by(*order), place.limit + 1, only)
    rows, more = found[: place.limit], len(found) > place.limit
    more_before, more_after = cursor is not None, more
    if place.before is not None:
        rows.reverse()
        more_before, more_after = more, True
    name = str(getattr(id, "key", None))
    ends = (rows[0][name], rows[-1][name]) if rows else (None, None)
    total = None
    if counted:
        total = len(rows) if cursor is None and not more else count(tx, query)
    return Page(rows, ends[0] if more_before else None, ends[1] if more_after else None, total)


def _first(tx: Connection, query: Select[*tuple[Any, ...]], number: int, only: Only | None) -> list[Record]:
    """Return the first rows of a sorted query; with `only`, the first of those that it keeps."""
    if only is None:
        return all_rows(tx, query.limit(number))
    total_order = query.order_by(*query.selected_columns)  # otherwise an offset could skip a row
    kept, offset, size = list[Record](), 0, 2 * number
    while len(kept) < number:
        rows = all_rows(tx, total_order.limit(size).offset(offset))
        kept += only(rows)
        if len(rows) < size:
            break
        offset, size = offset + size, min(4 * size, MAX_COUNT)  # more each time, for the query begins again
    return kept[:number]


def beyond(
    value: SQLColumnExpression[Any], id: SQLColumnExpression[Any], cursor: Key, *, descending: bool
) -> list[ColumnElement[bool]]:
    """Return the conditions that a row follows the row with the id `cursor`."""
    # The first condition alone bounds the scan of an index.
    if value is id:
        return [id < cursor if descending else id > cursor]
    last = select(value).where(id == cursor).limit(1).scalar_subquery()
    if descending:
        return [value <= last, or_(value < last, id < cursor)]
    return [value >= last, or_(value > last, id > cursor)]


def count(tx: Connection, query: Select[*tuple[Any, ...]]) -> int:
    """Return the number of rows of a query; `MAX_COUNT` + 1 if it has more than `MAX_COUNT`."""
    some = query.with_only_columns(literal(1), maintain_column_froms=True).order_by(None).limit(MAX_COUNT + 1)
    return tx.execute(select(func.count()).select_from(some.subquery())).scalar_one()


def given(filters: Mapping[str, str | None]) -> dict[str, str]:
    """Return the filters that are not None."""
    return {name: value for name, value in filters.items() if value is not None}


def page_of(rows: Sequence[Record], place: Place, key: str) -> Page:
    """Return a page of rows that are already read and sorted; `key` is the name of their id."""
    ordered = list(rows)[::-1] if place.reverse else list(rows)
    ids = [row[key] for row in ordered]
    if place.before is not None:
        end = ids.index(place.before) if place.before in ids else 0
        start = max(end - place.limit, 0)
    else:
        start = ids.index(place.after) + 1 if place.after in ids else 0
        end = start + place.limit
    before, after = ids[start] if start > 0 else None, ids[end - 1] if end < len(ids) else None
    return Page(ordered[start:end], before, after, len(ids))
