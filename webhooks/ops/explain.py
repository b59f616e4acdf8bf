"""The page that explains an object: what decides about it, and its timeline."""

from flask import Blueprint, abort, render_template, request
from sqlalchemy import Engine
from werkzeug.datastructures import MultiDict

from models.types import Record
from webhooks.ops.shared import row_id
from worker.bootstrap import Services
from worker.reports import listings
from worker.reports.explain import explain

STEPS = 10
"""Steps of the timeline on a page."""
TECHNICAL = {
    *("id", "kind", "revision", "erased", "column_versions", "email_normalized", "email_domain", "normalized"),
    *("event_at", "event_id", "touched_at", "deleted_by"),
}
"""Columns that say how the mirror works and not what it mirrors. The page folds them."""
ABOUT_WORKSPACES = ("uncertain", "auto_join", "joins", "invitations", "sessions")
"""Parts of the explanation whose rows name a workspace."""
LABELS = ("email", "name", "domain", "slug")
"""Columns by which people know an object."""


def add(routes: Blueprint, services: Services) -> None:
    """Add the page to `routes`."""

    @routes.get("/explain")
    def explain_page() -> str:
        name = request.args.get("name", "").strip()
        found = explain(services.engine, name) if name else None
        if name and found is None:
            abort(404, f"Nothing is known about {name}. The search above also finds parts of names and addresses.")
        if found is None:
            return render_template("ops/explain.html", name="", found=None)
        start = _start(request.args)
        newest_first = found["timeline"][::-1]
        return render_template(
            "ops/explain.html",
            name=name,
            found=found,
            title=next(filter(None, map(_label, found["objects"])), name),
            about=_descriptions(services.engine, found),
            technical=TECHNICAL,
            steps=newest_first[start : start + STEPS],
            first=start + 1,
            total=len(newest_first),
            older=start + STEPS if start + STEPS < len(newest_first) else None,
            newer=max(0, start - STEPS) if start else None,
        )


def _start(args: MultiDict[str, str]) -> int:
    """Return how many of the newest steps are left out."""
    return args.get("skip", 0, type=row_id)


def _label(row: Record) -> str | None:
    return next((row[name] for name in LABELS if row.get(name)), None)


def _descriptions(engine: Engine, found: Record) -> dict[str, str]:
    """Return, by id, what people call the objects of the page. Others have no entry."""
    named = {row["id"]: _label(row) for row in (*found["objects"], *found["auto_join"], *found["invitations"])}
    memberships = {
        row["membership_id"]: f"membership in {row['workspace_name']}"
        for row in found["access"]
        if row["workspace_name"]
    }
    workspaces = {
        row["organization_id"]: row["workspace_name"]
        for row in listings.named(engine, [row for part in ABOUT_WORKSPACES for row in found[part]])
    }
    return {id: label for id, label in (workspaces | named).items() if label} | memberships
