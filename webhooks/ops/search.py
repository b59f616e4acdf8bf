"""The search of the navigation: it opens the only match, or lists the matches."""

from itertools import groupby
from operator import attrgetter

from flask import Blueprint, redirect, render_template, request, url_for
from werkzeug import Response

from worker.bootstrap import Services
from worker.reports.search import EVENT, LIMIT, RUN, Match, search

HEADINGS = {"organization": "Workspaces", "user": "People"}


def add(routes: Blueprint, services: Services) -> None:
    """Add the page to `routes`."""

    @routes.get("/search")
    def search_page() -> str | Response:
        query = request.args.get("q", "").strip()
        matches = search(services.engine, query)
        if len(matches) == 1:
            return redirect(_page_of(matches[0]))
        kinds = [(kind, list(found)) for kind, found in groupby(matches, attrgetter("kind"))]
        groups = [(HEADINGS.get(kind, f"{kind.replace('_', ' ').capitalize()}s"), found) for kind, found in kinds]
        return render_template("ops/search.html", query=query, groups=groups, page_of=_page_of, limit=LIMIT)


def _page_of(match: Match) -> str:
    match match.kind:
        case "organization":
            return url_for("ops.workspace", organization_id=match.id)
        case kind if kind == EVENT:
            return url_for("ops.event", event_id=match.id)
        case kind if kind == RUN:
            return url_for("ops.run", run_id=match.id)
    return url_for("ops.explain_page", name=match.id)
