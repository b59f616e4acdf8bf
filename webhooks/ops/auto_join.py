"""Pages of auto-join and hooks: joins, blocks, failed deliveries and operators' decisions."""

from collections.abc import Callable
from functools import partial

from flask import Blueprint, flash, redirect, render_template, request, url_for
from werkzeug import Response

from webhooks.ops.shared import PAGE, actor, ask_for_reason, chosen_change
from worker.audit import Actor
from worker.bootstrap import Services
from worker.decision.roles import LOCAL_ROLES
from worker.errors import ConfigurationError, OperatorError
from worker.hooks import operate
from worker.mirror import auto_join_policy
from worker.reports import listings


def add(routes: Blueprint, services: Services) -> None:
    """Add the pages to `routes`."""
    engine, names = services.engine, services.settings.http_hooks

    @routes.get("/auto-join")
    def auto_join() -> str:
        return render_template(
            "ops/auto_join.html",
            mode=services.settings.auto_join,
            domains=listings.list_domains(engine, off=True, limit=PAGE),
            joins=auto_join_policy.joins(engine, limit=PAGE),
            missing=auto_join_policy.missing_members(engine, PAGE),
            without_admin=auto_join_policy.without_admin(engine, PAGE),
        )

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
        return _apply(decision, url_for("ops.workspace", organization_id=organization_id))

    @routes.post("/workspaces/<id:organization_id>/people/<id:user_id>/unblock")
    def unblock(organization_id: str, user_id: str) -> Response:
        decision = partial(auto_join_policy.unblock, engine, organization_id, user_id)
        return _apply(decision, url_for("ops.auto_join"))

    @routes.post("/workspaces/<id:organization_id>/invitations/<id:invitation_id>/unblock")
    def unblock_invited(organization_id: str, invitation_id: str) -> Response:
        decision = partial(auto_join_policy.unblock, engine, organization_id, invitation_id)
        return _apply(decision, url_for("ops.workspace", organization_id=organization_id))

    @routes.post("/workspaces/<id:organization_id>/people/<id:user_id>/block")
    def block(organization_id: str, user_id: str) -> Response:
        decision = partial(auto_join_policy.block, engine, organization_id, user_id)
        return _apply(decision, url_for("ops.auto_join"))

    @routes.get("/hooks")
    def hooks_page() -> str:
        hooks = operate.hook_status(engine, names)
        deliveries = operate.deliveries(engine, limit=PAGE)
        return render_template("ops/hooks.html", hooks=hooks, deliveries=deliveries)

    @routes.post("/hooks/<id:name>/replay")
    def replay_hook(name: str) -> Response:
        number = operate.replay(engine, name, chosen_change(), actor(), names)
        services.hooks_bell.ring()
        return _report(number, "queued for retry")

    @routes.post("/hooks/<id:name>/dismiss")
    def dismiss_hook(name: str) -> Response:
        if asked := ask_for_reason(url_for("ops.hooks_page")):
            return asked
        number = operate.dismiss(engine, name, chosen_change(), actor(), names)
        return _report(number, "dismissed")


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


def _report(number: int, action: str) -> Response:
    flash(f"{number} {'delivery' if number == 1 else 'deliveries'} {action}.", "good" if number else "bad")
    return redirect(url_for("ops.hooks_page"))
