"""The page of the audit: the actions of operators and settings."""

from flask import Blueprint, render_template, request

from models.tables import Action, Via
from webhooks.ops.shared import PAGE, row_id, split_page
from worker.bootstrap import Services
from worker.reports import listings

FILTERS = ("who", "via", "action", "object_id", "organization_id")


def add(routes: Blueprint, services: Services) -> None:
    """Add the page to `routes`."""

    @routes.get("/audit")
    def audit() -> str:
        filters = {name: value for name in FILTERS if (value := request.args.get(name, "").strip())}
        after = request.args.get("after", type=row_id)
        rows = listings.list_audit(services.engine, filters, after=after, limit=PAGE + 1)
        shown, older = split_page(rows, "id")
        return render_template("ops/audit.html", rows=shown, filters=filters, older=older, ways=Via, actions=Action)
