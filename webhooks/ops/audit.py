"""The page of the audit: the actions of operators and settings."""

from flask import Blueprint, render_template

from models.tables import Action, Via
from webhooks.ops.lists import chosen, chosen_page, chosen_period, with_workspace
from webhooks.ops.shared import row_id
from worker.bootstrap import Services
from worker.reports import listings

FILTERS = ("who", "via", "action", "object_id", "organization_id")


def add(routes: Blueprint, services: Services) -> None:
    """Add the page to `routes`."""

    @routes.get("/audit")
    def audit() -> str:
        selected = with_workspace(services.engine, chosen(*FILTERS))
        page = listings.audit_page(services.engine, selected, chosen_page(row_id), **chosen_period())
        filters = chosen(*FILTERS, "since", "until")
        return render_template("ops/audit.html", page=page, filters=filters, ways=list(Via), actions=list(Action))
