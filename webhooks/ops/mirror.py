"""Pages of the mirror: people and permissions."""

from flask import Blueprint, render_template, request

from webhooks.ops.lists import PAGE, chosen_page
from worker.bootstrap import Services
from worker.reports import listings


def add(routes: Blueprint, services: Services) -> None:
    """Add the pages to `routes`."""
    engine = services.engine

    @routes.get("/people")
    def people() -> str:
        search, deleted = request.args.get("email", "").strip(), request.args.get("state") == "deleted"
        page = listings.people_page(engine, chosen_page(), search=search or None, deleted=deleted)
        return render_template("ops/people.html", page=page, email=search, deleted=deleted)

    @routes.get("/permissions")
    def permissions() -> str:
        found = listings.list_permissions(engine, after=request.args.get("after"), limit=PAGE + 1)
        rows, more = found[:PAGE], len(found) > PAGE
        return render_template("ops/permissions.html", rows=rows, more=more)
