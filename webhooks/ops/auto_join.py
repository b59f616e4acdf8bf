"""The page of auto-join: missing members, joins, domains, and operators' decisions."""

from collections.abc import Callable
from functools import partial

from flask import Blueprint, flash, redirect, render_template, request, url_for
from werkzeug import Response

from models.tables import JoinState
from webhooks.ops.lists import chosen, chosen_page
from webhooks.ops.shared import actor, ask_for_reason
from worker.audit import Actor
from worker.bootstrap import Services
from worker.decision.roles import LOCAL_ROLES
from worker.errors import ConfigurationError, OperatorError
from worker.mirror import auto_join_policy
from worker.reports import listings

PARTS = {
    "missing": "Missing members",
    "joins": "Joins",
    "domains": "Domains without auto-join",
    "without_admin": "Workspaces without an admin",
}
"""The lists of the page, by the parameter `show`: their titles."""


def add(routes: Blueprint, services: Services) -> None:
    """Add the pages to `routes`."""
    engine = services.engine

    @routes.get("/auto-join")
    def auto_join() -> str:
        show = request.args.get("show", "")
        return render_template(
            "ops/auto_join.html",
            mode=services.settings.auto_join,
            parts=PARTS,
            show=show if show in PARTS else "missing",
            state=request.args.get("state", ""),
            states=list(JoinState),
            page=_part(show),
        )

    def _part(show: str) -> listings.Page:
        place = chosen_page()
        match show:
            case "joins":
                return listings.joins_page(engine, place, **chosen("state"))
            case "domains":
                return listings.domains_page(engine, place, off=True)
            case "without_admin":
                return listings.without_admin_page(engine, place)
        return listings.missing_members_page(engine, place)

    @routes.post("/workspaces/<id:organization_id>/auto-join")
    def set_auto_join(organization_id: str) -> Response:
        role = request.form.get("role")
        decision = partial(
            auto_join_policy.set_workspace,
            engine,
            organization_id,
            auto_join={"on": True, "off": False}.get(request.form.get("switch", "")),
            default_role=role if role in LOCAL_ROLES else None,
        )
        return _apply(decision, url_for("ops.workspace", organization_id=organization_id, show="domains"))

    @routes.post("/workspaces/<id:organization_id>/people/<id:user_id>/unblock")
    def unblock(organization_id: str, user_id: str) -> Response:
        decision = partial(auto_join_policy.unblock, engine, organization_id, user_id)
        return _apply(decision, url_for("ops.auto_join", show="joins"))

    @routes.post("/workspaces/<id:organization_id>/invitations/<id:invitation_id>/unblock")
    def unblock_invited(organization_id: str, invitation_id: str) -> Response:
        decision = partial(auto_join_policy.unblock, engine, organization_id, invitation_id)
        return _apply(decision, url_for("ops.workspace", organization_id=organization_id, show="invitations"))

    @routes.post("/workspaces/<id:organization_id>/people/<id:user_id>/block")
    def block(organization_id: str, user_id: str) -> Response:
        decision = partial(auto_join_policy.block, engine, organization_id, user_id)
        return _apply(decision, url_for("ops.auto_join", show="joins"))


def _apply(decision: Callable[[Actor], object], back: str) -> Response:
    """Call `decision` with the operator and their reason, and redirect to `back` with the result."""
    if asked := ask_for_reason(back):
        return asked
    try:
        decision(actor())
    except (ConfigurationError, OperatorError) as error:
        flash(f"Failed: {error}.", "bad")
    else:
        flash("Saved.", "good")
    return redirect(back)
