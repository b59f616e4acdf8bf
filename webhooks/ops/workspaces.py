"""Pages of workspaces: their list, and the lists of one of them."""

from io import BytesIO
from typing import Any

from flask import Blueprint, abort, render_template, request, send_file
from sqlalchemy import Engine
from werkzeug import Response

from models.database import read_transaction
from webhooks.ops.lists import chosen, chosen_page
from webhooks.ops.shared import actor, chosen_time, row_id, start_resync
from worker.bootstrap import Services
from worker.decision.roles import LOCAL_ROLES
from worker.mirror.auto_join_policy import workspace_settings
from worker.reports import listings
from worker.reports.review import write_review

PARTS = {
    "members": "Members",
    "invitations": "Invitations",
    "domains": "Domains",
    "sign_in": "Single sign-on",
    "changes": "Changes",
}
"""The lists of a workspace, by the parameter `show`: their titles."""


def add(routes: Blueprint, services: Services) -> None:
    """Add the pages to `routes`."""
    engine = services.engine

    @routes.get("/workspaces")
    def workspaces() -> str:
        search, deleted = request.args.get("name", "").strip(), request.args.get("state") == "deleted"
        page = listings.workspaces_page(engine, chosen_page(), search=search or None, deleted=deleted)
        return render_template("ops/workspaces.html", page=page, name=search, deleted=deleted)

    @routes.get("/workspaces/<id:organization_id>")
    def workspace(organization_id: str) -> str:
        then, as_workos = chosen_time(), request.args.get("as") == "workos"
        if then is not None:
            past = listings.list_members(engine, organization_id, then, as_workos=as_workos)
            if past is None:
                abort(404, "There was no workspace with this id.")
            page = listings.page_of(past["members"], chosen_page(), "user_id")
            shown = {"workspace": past, "then": then, "as_workos": as_workos, "page": page, "show": "members"}
            return render_template("ops/workspace.html", **shown)
        found = listings.workspace(engine, organization_id)
        if found is None:
            abort(404, "There is no workspace with this id.")
        with read_transaction(engine) as tx:
            settings = workspace_settings(tx, organization_id)
        show = request.args.get("show", "")
        return render_template(
            "ops/workspace.html",
            workspace=found,
            settings=settings,
            uncertain=listings.list_uncertain(engine, organization_id),
            parts=PARTS,
            show=show if show in PARTS else "members",
            page=_part(engine, organization_id, show),
            roles=LOCAL_ROLES,
            filters=chosen("search", "role"),
        )

    @routes.post("/workspaces/<id:organization_id>/resync")
    def resync_workspace(organization_id: str) -> Response:
        return start_resync(services, organization_id=organization_id)

    @routes.post("/workspaces/<id:organization_id>/review")
    def review_workspace(organization_id: str) -> Response:
        """Answer with an access review of the workspace, as a file to download."""
        file = BytesIO()
        write_review(engine, file, "html", actor(), organization_id=organization_id)
        file.seek(0)
        return send_file(file, "text/html", as_attachment=True, download_name=f"review-{organization_id}.html")


def _part(engine: Engine, organization_id: str, show: str) -> listings.Page:
    of_workspace: tuple[Any, ...] = (engine, organization_id, chosen_page(row_id if show == "changes" else str))
    match show:
        case "invitations":
            return listings.invitations_page(*of_workspace)
        case "domains":
            return listings.domains_page(engine, chosen_page(), organization_id=organization_id)
        case "sign_in":
            return listings.sign_in_page(*of_workspace)
        case "changes":
            return listings.changes_page(*of_workspace)
    return listings.members_page(*of_workspace, **chosen("search", "role"))
