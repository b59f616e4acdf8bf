"""Pages of auto-join and hooks: who waits, who is kept out, what a hook failed at, and what operators decide."""

from collections.abc import Callable

from flask import Blueprint, flash, redirect, render_template, request, session, url_for
from werkzeug import Response

from worker.decision.roles import LOCAL_ROLES
from worker.errors import ConfigurationError
from worker.hooks import operate
from worker.looking import reports
from worker.mirror import admission
from worker.wiring import Wiring

PAGE = 50


def add(routes: Blueprint, wiring: Wiring) -> None:
    """Add them to `routes`."""
    engine = wiring.engine

    @routes.get("/auto-join")
    def auto_join() -> str:
        return render_template(
            "ops/auto_join.html",
            mode=wiring.settings.auto_join,
            domains=reports.list_domains(engine, off=True, limit=PAGE),
            joins=admission.joins(engine, limit=PAGE),
            missing=admission.missing(engine, PAGE),
            without_admin=admission.without_admin(engine, PAGE),
        )

    @routes.post("/workspaces/<path:organization_id>/auto-join")
    def set_auto_join(organization_id: str) -> Response:
        given = {"on": True, "off": False}.get(request.form.get("switch", ""))
        role = request.form.get("role")
        wanted = role if role in LOCAL_ROLES else None
        return _decided(
            lambda why: admission.set_workspace(
                engine, organization_id, session["name"], why, auto_join=given, default_role=wanted
            ),
            url_for("ops.workspace", organization_id=organization_id),
        )

    @routes.post("/workspaces/<path:organization_id>/people/<user_id>/lift")
    def lift(organization_id: str, user_id: str) -> Response:
        return _decided(
            lambda why: admission.lift(engine, organization_id, user_id, session["name"], why),
            url_for("ops.auto_join"),
        )

    @routes.post("/workspaces/<path:organization_id>/people/<user_id>/block")
    def block(organization_id: str, user_id: str) -> Response:
        return _decided(
            lambda why: admission.block(engine, organization_id, user_id, session["name"], why),
            url_for("ops.auto_join"),
        )

    @routes.get("/hooks")
    def hooks_page() -> str:
        standing = operate.standing(engine, wiring.settings.http_hooks)
        waiting = operate.deliveries(engine, limit=PAGE)
        return render_template("ops/hooks.html", hooks=standing, deliveries=waiting)

    @routes.post("/hooks/<name>/replay")
    def replay_hook(name: str) -> Response:
        number = operate.replay(engine, name, request.form.get("change", type=int), session["name"])
        wiring.hooks_bell.ring()
        return _told(number, "put back")

    @routes.post("/hooks/<name>/dismiss")
    def dismiss_hook(name: str) -> Response:
        number = operate.dismiss(engine, name, request.form.get("change", type=int), session["name"])
        return _told(number, "dismissed")


def _decided(decide: Callable[[str], object], back: str) -> Response:
    """Do what an operator decided, if they say why; return to a page."""
    why = request.form.get("why", "").strip()
    if not why:
        flash("Say why: it is kept with what is decided.", "bad")
        return redirect(back)
    try:
        decide(why)
    except ConfigurationError as error:
        flash(f"Not done: {error}.", "bad")
    else:
        flash("Done.", "good")
    return redirect(back)


def _told(number: int, what: str) -> Response:
    flash(f"{number} {what}.", "good" if number else "bad")
    return redirect(url_for("ops.hooks_page"))
