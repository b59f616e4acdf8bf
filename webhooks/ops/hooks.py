"""Pages of hooks: their status, and failed deliveries to retry or dismiss."""

from flask import Blueprint, flash, redirect, render_template, request, url_for
from werkzeug import Response

from webhooks.ops.lists import GROUPS, chosen, chosen_page, shown_at
from webhooks.ops.shared import actor, ask_for_reason, chosen_change, row_id
from worker.bootstrap import Services
from worker.hooks import operate
from worker.reports import listings


def add(routes: Blueprint, services: Services) -> None:
    """Add the pages to `routes`."""
    engine, names = services.engine, services.settings.http_hooks

    @routes.get("/hooks")
    def hooks_page() -> str:
        hook, filters = request.args.get("hook", ""), chosen("status", "fingerprint")
        groups = [] if hook else operate.failures(engine, GROUPS + 1)
        return render_template(
            "ops/hooks.html",
            hooks=operate.list_hooks(engine, names),
            groups=groups[:GROUPS],
            more=len(groups) > GROUPS,
            hook=hook,
            **filters,
            page=listings.deliveries_page(engine, hook, chosen_page(row_id), **filters) if hook else None,
        )

    @routes.post("/hooks/<id:name>/replay")
    def replay_hook(name: str) -> Response:
        number = operate.replay(engine, name, chosen_change(), actor(), names, _fingerprint())
        services.hooks_bell.ring()
        return _report(number, "queued for retry")

    @routes.post("/hooks/<id:name>/dismiss")
    def dismiss_hook(name: str) -> Response:
        if asked := ask_for_reason(url_for("ops.hooks_page")):
            return asked
        number = operate.dismiss(engine, name, chosen_change(), actor(), names, _fingerprint(), shown_at())
        return _report(number, "dismissed")


def _fingerprint() -> str | None:
    """Return the fingerprint that the form names, which may be empty; None if the form is about all errors."""
    return request.form.get("fingerprint")


def _report(number: int, action: str) -> Response:
    flash(f"{number:,} {'delivery' if number == 1 else 'deliveries'} {action}.", "good" if number else "bad")
    return redirect(url_for("ops.hooks_page"))
