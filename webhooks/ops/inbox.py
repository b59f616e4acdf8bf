"""Pages of the inbox: events with their outcomes, and failed events by error."""

from flask import Blueprint, abort, flash, redirect, render_template, request, url_for
from werkzeug import Response

from models.tables import EventStatus
from webhooks.ops.shared import PAGE, actor, ask_for_reason, split_page, start_run
from worker.audit import Actor
from worker.bootstrap import Services
from worker.kinds import SUBSCRIBED
from worker.repair import replay
from worker.repair.replay import Selection
from worker.reports import listings

FILTERS = ("status", "type", "organization_id", "fingerprint")


def add(routes: Blueprint, services: Services) -> None:
    """Add the pages to `routes`."""
    engine = services.engine

    @routes.get("/events")
    def events() -> str:
        filters = {name: value for name in FILTERS if (value := request.args.get(name, "").strip())}
        found = listings.list_events(engine, **filters, after=request.args.get("after"), limit=PAGE + 1)
        rows, older = split_page(found, "id")
        choices = {"statuses": list(EventStatus), "types": SUBSCRIBED}
        return render_template("ops/events.html", rows=rows, filters=filters, older=older, **choices)

    @routes.get("/events/<id:event_id>")
    def event(event_id: str) -> str:
        found = listings.show_event(engine, event_id)
        if found is None:
            abort(404, "There is no event with this id.")
        return render_template("ops/event.html", event=found)

    @routes.post("/events/<id:event_id>/replay")
    def replay_event(event_id: str) -> Response:
        return _replay(services, Selection(ids=(event_id,)), again=True)

    @routes.post("/events/<id:event_id>/dismiss")
    def dismiss_event(event_id: str) -> Response:
        back = url_for("ops.event", event_id=event_id)
        if asked := ask_for_reason(back):
            return asked
        if replay.dismiss(engine, [event_id], actor()):
            flash("Event dismissed.", "good")
        else:
            flash("Only failed events can be dismissed.", "bad")
        return redirect(back)

    @routes.get("/failures")
    def failures() -> str:
        return render_template("ops/failures.html", rows=listings.failures(engine))

    @routes.post("/failures/<id:fingerprint>/replay")
    def replay_failures(fingerprint: str) -> Response:
        return _replay(services, Selection(fingerprint=fingerprint))


def _replay(services: Services, selection: Selection, *, again: bool = False) -> Response:
    def start(by: Actor) -> str:
        return replay.start(services.engine, selection, by, again=again)

    return start_run(services, start, "Replay started.")
