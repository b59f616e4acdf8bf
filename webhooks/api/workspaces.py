"""API routes that read what belongs to workspaces: invitations, domains and sign-in methods."""

from flask import Blueprint, Response
from spectree import SpecTree
from sqlalchemy import Engine

from webhooks.api import schemas
from webhooks.api.answers import answers, page
from worker.reports import listings


def add(routes: Blueprint, spec: SpecTree, engine: Engine) -> None:
    """Add the routes to `routes`, and their descriptions to `spec`."""

    @routes.get("/invitations")
    @spec.validate(resp=answers(schemas.Page[schemas.Invitation]), tags=["mirror"])
    def list_invitations(query: schemas.InvitationQuery) -> Response:
        """List the invitations to workspaces, ordered by invitation id. All filters must match."""
        filters = query.model_dump(include={"organization_id", "email", "status"}, exclude_none=True)
        rows = listings.list_invitations(engine, filters, after=query.after, limit=query.limit)
        return page(schemas.Page[schemas.Invitation], rows, query.limit, "invitation_id")

    @routes.get("/domains")
    @spec.validate(resp=answers(schemas.Page[schemas.Domain]), tags=["mirror"])
    def list_domains(query: schemas.InWorkspace) -> Response:
        """List the domains of workspaces, ordered by id: whether each auto-joins, and why."""
        rows = listings.list_domains(engine, query.organization_id, after=query.after, limit=query.limit)
        return page(schemas.Page[schemas.Domain], rows, query.limit, "id")

    @routes.get("/sign-in-methods")
    @spec.validate(resp=answers(schemas.Page[schemas.SignInMethod]), tags=["mirror"])
    def list_sign_in_methods(query: schemas.InWorkspace) -> Response:
        """List active single sign-on connections, ordered by connection id. A workspace without one has no SSO."""
        rows = listings.list_sign_in(engine, query.organization_id, after=query.after, limit=query.limit)
        return page(schemas.Page[schemas.SignInMethod], rows, query.limit, "connection_id")
