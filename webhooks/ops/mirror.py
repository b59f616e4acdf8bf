"""Pages of the mirror: workspaces, people and permissions."""

from flask import Blueprint, abort, render_template, request
from werkzeug import Response

from models.database import read_transaction
from webhooks.ops.shared import PAGE, chosen_time, split_page, start_resync
from worker.bootstrap import Services
from worker.mirror.auto_join_policy import workspace_settings
from worker.reports import listings


def add(routes: Blueprint, services: Services) -> None:
    """Add the pages to `routes`."""
    engine = services.engine

    @routes.get("/workspaces")
    def workspaces() -> str:
        name = request.args.get("name", "").strip() or None
        found = listings.list_workspaces(engine, name=name, after=request.args.get("after"), limit=PAGE + 1)
        rows, more = split_page(found, "organization_id")
        return render_template("ops/workspaces.html", rows=rows, name=name or "", more=more)

    @routes.get("/workspaces/<id:organization_id>")
    def workspace(organization_id: str) -> str:
        then, as_workos = chosen_time(), request.args.get("as") == "workos"
        found = listings.list_members(engine, organization_id, then, as_workos=as_workos)
        if found is None:
            abort(404, f"There {'was' if then else 'is'} no workspace with this id.")
        if then is not None:
            return render_template("ops/workspace.html", workspace=found, then=then, as_workos=as_workos)
        with read_transaction(engine) as tx:
            settings = workspace_settings(tx, organization_id)
        return render_template(
            "ops/workspace.html",
            workspace=found,
            settings=settings,
            uncertain=listings.list_uncertain(engine, organization_id),
            domains=listings.list_domains(engine, organization_id, limit=PAGE),
            invitations=listings.list_invitation_blocks(engine, organization_id, limit=PAGE),
            sign_in=listings.list_sign_in(engine, organization_id, limit=PAGE),
            changes=listings.recent_changes(engine, organization_id, PAGE),
        )

    @routes.post("/workspaces/<id:organization_id>/resync")
    def resync_workspace(organization_id: str) -> Response:
        return start_resync(services, organization_id=organization_id)

    @routes.get("/people")
    def people() -> str:
        email = request.args.get("email", "").strip()
        return render_template("ops/people.html", rows=listings.list_people(engine, email, PAGE), email=email)

    @routes.get("/permissions")
    def permissions() -> str:
        found = listings.list_permissions(engine, after=request.args.get("after"), limit=PAGE + 1)
        rows, more = split_page(found, "id")
        return render_template("ops/permissions.html", rows=rows, more=more)
