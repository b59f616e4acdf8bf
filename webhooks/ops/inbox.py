"""Pages of the inbox: events, what became of each, and the failed ones by their error."""

from flask import Blueprint, abort, flash, redirect, render_template, request, session, url_for
from werkzeug import Response

from models.tables import EventStatus
from worker.bootstrap import Services
from worker.decision.handlers import HANDLERS
from worker.repair import replay
from worker.repair.replay import Selection
from worker.reports import listings

FILTERS = ("status", "type", "organization_id", "fingerprint")
PAGE = 50


def add(routes: Blueprint, services: Services) -> None:
    """Add them to `routes`."""
    engine = services.engine

    @routes.get("/events")
    def events() -> str:
        given = {name: value for name in FILTERS if (value := request.args.get(name, "").strip())}
        rows = listings.list_events(engine, **given, after=request.args.get("after"), limit=PAGE + 1)
        older = rows[PAGE - 1]["id"] if len(rows) > PAGE else None
        known = {"statuses": list(EventStatus), "types": sorted(HANDLERS)}
        return render_template("ops/events.html", rows=rows[:PAGE], given=given, older=older, **known)

    @routes.get("/events/<path:event_id>")
    def event(event_id: str) -> str:
        found = listings.show_event(engine, event_id)
        if found is None:
            abort(404, "No such event was ever received.")
        return render_template("ops/event.html", event=found)

    @routes.post("/events/<path:event_id>/replay")
    def replay_event(event_id: str) -> Response:
        return _replay(services, Selection(ids=(event_id,)), again=True)

    @routes.post("/events/<path:event_id>/dismiss")
    def dismiss_event(event_id: str) -> Response:
        why = request.form.get("why", "").strip()
        if not why:
            flash("Say why: it is kept with the event.", "bad")
        elif replay.dismiss(engine, [event_id], session["name"], why):
            flash("Dismissed.", "good")
        else:
            flash("Only a failed event can be dismissed.", "bad")
        return redirect(url_for("ops.event", event_id=event_id))

    @routes.get("/failures")
    def failures() -> str:
        return render_template("ops/failures.html", rows=listings.failures(engine))

    @routes.post("/failures/<fingerprint>/replay")
    def replay_failures(fingerprint: str) -> Response:
        return _replay(services, Selection(fingerprint=fingerprint))


def _replay(services: Services, selection: Selection, *, again: bool = False) -> Response:
    why = request.form.get("why", "").strip() or None
    run_id = replay.start(services.engine, selection, session["name"], why, again=again)
    services.repair_bell.ring()
    return redirect(url_for("ops.run", run_id=run_id))
