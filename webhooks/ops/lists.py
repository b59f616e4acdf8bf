"""Shared by pages with lists: the page and the filters that the address names."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

from flask import Flask, abort, request, url_for
from sqlalchemy import Engine

from worker.reports.explain import changed_fields
from worker.reports.listings import Place
from worker.reports.lookup import find_organization
from worker.times import TIME_FORMS, parse_time

PAGE = 20
"""Rows of a page: as many cards are still readable on a phone."""
GROUPS = 10
"""Groups of failures on a page."""
PAGING = ("after", "before")


def install(app: Flask) -> None:
    """Add what the templates of lists need to `app`."""
    app.add_template_global(with_query)
    app.add_template_global(changed_fields)


def chosen_page(key: Callable[[str], Any] = str) -> Place:
    """Return the page that `after` or `before` and `sort` name. `key` converts an id; what it refuses is ignored."""
    after = request.args.get("after", type=key)
    before = request.args.get("before", type=key) if after is None else None
    return Place(after, before, PAGE, reverse=request.args.get("sort") == "reverse")


def chosen(*names: str) -> dict[str, Any]:
    """Return the filters of these names that are not empty."""
    return {name: value for name in names if (value := request.values.get(name, "").strip())}


def with_workspace(engine: Engine, filters: dict[str, Any]) -> dict[str, Any]:
    """Return filters whose `organization_id`, an id, external id or name, is replaced by the id if one matches.

    Raises:
        AmbiguousNameError: several workspaces match.
    """
    name = filters.get("organization_id")
    return filters | {"organization_id": find_organization(engine, name) or name} if name else filters


def chosen_period() -> dict[str, Any]:
    """Return `since` and `until` in UTC; None if empty. Text that names no time is answered with 400."""
    return {name: _time(name) for name in ("since", "until")}


def shown_at() -> datetime | None:
    """Return when the page with the form was requested, by the database's clock; None if the form does not say.

    Text that names no time is answered with 400.
    """
    return _time("shown")


def _time(name: str) -> datetime | None:
    text = request.values.get(name, "").strip()
    try:
        return parse_time(text) if text else None
    except (ValueError, OverflowError):
        abort(400, f"{name} is not a time; {TIME_FORMS}")


def with_query(**changes: object) -> str:
    """Return the address of this page with other query parameters; None removes one. A list begins at its start."""
    query: dict[str, Any] = {name: value for name, value in request.args.items() if name not in PAGING}
    wanted = {name: value for name, value in (query | changes).items() if value not in (None, "")}
    return url_for(str(request.endpoint), **(request.view_args or {}), **wanted)
