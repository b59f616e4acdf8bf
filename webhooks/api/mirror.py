"""API routes that read the mirror: workspaces, members and access."""

from flask import Blueprint, Response
from spectree import SpecTree
from sqlalchemy import Engine

from models.access import Stale, access_of, auto_join_for
from models.database import session
from webhooks.api import schemas
from webhooks.api.answers import answers, as_json, one, page
from worker.reports import listings


def add(routes: Blueprint, spec: SpecTree, engine: Engine) -> None:
    """Add the routes to `routes`, and their descriptions to `spec`."""

    @routes.get("/workspaces")
    @spec.validate(resp=answers(schemas.Page[schemas.Workspace]), tags=["mirror"])
    def list_workspaces(query: schemas.WorkspaceQuery) -> Response:
        """List workspaces, ordered by id."""
        rows = listings.list_workspaces(engine, state=query.state, after=query.after, limit=query.limit)
        return page(schemas.Page[schemas.Workspace], rows, query.limit, "organization_id")

    @routes.get("/workspaces/<path:organization_id>")
    @spec.validate(resp=answers(schemas.Workspace, HTTP_404=schemas.Error), tags=["mirror"])
    def show_workspace(organization_id: str) -> Response:
        """Return one workspace, active or deleted."""
        return one(schemas.Workspace, listings.workspace(engine, organization_id))

    @routes.get("/members")
    @spec.validate(resp=answers(schemas.Page[schemas.Member]), tags=["mirror"])
    def list_members(query: schemas.MemberQuery) -> Response:
        """List the members who have access now, ordered by membership id. All filters must match."""
        filters = query.model_dump(include={"organization_id", "user_id", "email"}, exclude_none=True)
        rows = listings.list_access(engine, filters, after=query.after, limit=query.limit)
        return page(schemas.Page[schemas.Member], rows, query.limit, "membership_id")

    @routes.get("/access")
    @spec.validate(resp=answers(schemas.Access, HTTP_400=schemas.Error, HTTP_503=schemas.StaleAnswer), tags=["mirror"])
    def access(query: schemas.AccessQuery) -> Response:
        """Return a person's role in a workspace, null for no access.

        400: the bound is smaller than the smallest that can be met, which the message names.

        503: the answer may be older than the bound. Treat it as no access, or retry after `Retry-After`.
        """
        try:
            with session(engine) as opened:
                found = access_of(opened, query.user_id, query.organization_id, query.max_staleness)
        except ValueError as error:
            return as_json(schemas.Error(error=str(error)), 400)
        except Stale as stale:
            reason = schemas.StaleAnswer(
                error=stale.reason, complete_to=stale.complete_to, retry_after=stale.retry_after
            )
            response = as_json(reason, 503)
            response.headers["Retry-After"] = str(stale.retry_after)
            return response
        response = as_json(schemas.Access(**found._asdict()))
        response.headers["Cache-Control"] = "no-store"
        return response

    @routes.get("/auto-join")
    @spec.validate(resp=answers(schemas.AutoJoin), tags=["mirror"])
    def auto_join(query: schemas.AutoJoinQuery) -> Response:
        """Return the workspace that a person with this verified e-mail address joins by domain."""
        with session(engine) as open_session:
            found = auto_join_for(open_session, query.email)
        return as_json(schemas.AutoJoin(auto_join=schemas.Join(**found._asdict()) if found else None))
