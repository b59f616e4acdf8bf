"""API routes that read the mirror."""

from flask import Blueprint, Response
from spectree import SpecTree
from sqlalchemy import Engine

from models.access import auto_join_for
from models.database import session
from webhooks.api import requests, responses
from webhooks.api.answers import answers, as_json, one, page
from worker.reports import listings


def add(routes: Blueprint, spec: SpecTree, engine: Engine) -> None:
    """Add the routes to `routes`, and their descriptions to `spec`."""

    @routes.get("/workspaces")
    @spec.validate(resp=answers(responses.Page[responses.Workspace]), tags=["mirror"])
    def list_workspaces(query: requests.WorkspaceQuery) -> Response:
        """List workspaces, ordered by id."""
        rows = listings.list_workspaces(engine, **query.model_dump())
        return page(responses.Page[responses.Workspace], rows, query.limit, "organization_id")

    @routes.get("/workspaces/<path:organization_id>")
    @spec.validate(resp=answers(responses.Workspace, HTTP_404=responses.Error), tags=["mirror"])
    def show_workspace(organization_id: str) -> Response:
        """Return one workspace, active or deleted."""
        return one(responses.Workspace, listings.workspace(engine, organization_id))

    @routes.get("/members")
    @spec.validate(
        resp=answers(responses.Page[responses.ListedMember], HTTP_400=responses.Error, HTTP_410=responses.Error),
        tags=["mirror"],
    )
    def list_members(query: requests.MemberQuery) -> Response:
        """List the members who have access now, or had it `at` a time, by membership id. All filters must match.

        400: the time is in the future.

        410: the time is before the mirror was filled, or the changes since have been pruned. The message names the
        earliest time.

        With `as_workos`, the answer is exact up to the header `Mirror-Complete-To`, except where `approximate` is true.
        """
        options = query.model_dump(include={"at", "as_workos", "after", "limit"})
        filters = query.model_dump(exclude=set(options), exclude_none=True)
        rows = listings.list_access(engine, filters, **options)
        return page(responses.Page[responses.ListedMember], rows, query.limit, "membership_id")

    @routes.get("/invitations")
    @spec.validate(resp=answers(responses.Page[responses.Invitation]), tags=["mirror"])
    def list_invitations(query: requests.InvitationQuery) -> Response:
        """List the invitations to workspaces, ordered by invitation id. All filters must match."""
        filters = query.model_dump(include={"organization_id", "email", "status"}, exclude_none=True)
        rows = listings.list_invitations(engine, filters, after=query.after, limit=query.limit)
        return page(responses.Page[responses.Invitation], rows, query.limit, "invitation_id")

    @routes.get("/domains")
    @spec.validate(resp=answers(responses.Page[responses.Domain]), tags=["mirror"])
    def list_domains(query: requests.InWorkspace) -> Response:
        """List the domains of workspaces, ordered by id: whether each auto-joins, and why."""
        rows = listings.list_domains(engine, query.organization_id, after=query.after, limit=query.limit)
        return page(responses.Page[responses.Domain], rows, query.limit, "id")

    @routes.get("/sign-in-methods")
    @spec.validate(resp=answers(responses.Page[responses.SignInMethod]), tags=["mirror"])
    def list_sign_in_methods(query: requests.InWorkspace) -> Response:
        """List active single sign-on connections, ordered by connection id. A workspace without one has no SSO."""
        rows = listings.list_sign_in(engine, query.organization_id, after=query.after, limit=query.limit)
        return page(responses.Page[responses.SignInMethod], rows, query.limit, "connection_id")

    @routes.get("/auto-join")
    @spec.validate(resp=answers(responses.AutoJoin), tags=["mirror"])
    def auto_join(query: requests.AutoJoinQuery) -> Response:
        """Return the workspace that a person with this verified e-mail address joins by domain."""
        with session(engine) as open_session:
            found = auto_join_for(open_session, query.email)
        return as_json(responses.AutoJoin(auto_join=responses.Join(**found._asdict()) if found else None))
