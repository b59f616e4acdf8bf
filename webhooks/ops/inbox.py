"""Pages of the inbox: events with their outcomes, and failed events by error."""

from flask import Blueprint, abort, flash, redirect, render_template, request, url_for
from sqlalchemy import Engine
from werkzeug import Response

from models.tables import EventStatus
from webhooks.ops.lists import GROUPS, chosen, chosen_page, chosen_period, shown_at, with_workspace
from webhooks.ops.shared import actor, ask_for_reason, start_run
from worker.audit import Actor
from worker.bootstrap import Services
from worker.inbox import dismissal
from worker.inbox.selection import Selection
from worker.kinds import SUBSCRIBED
from worker.repair import replay
from worker.reports import listings

FILTERS = ("status", "type", "organization_id", "object_id", "fingerprint")
MAX_TICKED = 1_000
"""A page shows fewer. Databases refuse a statement with tens of thousands of ids."""


def add(routes: Blueprint, services: Services) -> None:
    """Add the pages to `routes`."""
    engine = services.engine
    _add_failures(routes, services)
    _add_actions(routes, services)

    @routes.get("/events")
    def events() -> str:
        selection = _chosen_selection(engine)
        page = listings.events_page(engine, selection, chosen_page())
        choices = {"statuses": list(EventStatus), "type_choices": [(type, type) for type in SUBSCRIBED]}
        # Of a form that is sent later, `2h` would be another time than on this page.
        acted_on = selection.as_json()
        filters = chosen(*FILTERS, "since", "until")
        return render_template("ops/events.html", page=page, filters=filters, acted_on=acted_on, **choices)

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
        if dismissal.dismiss(engine, [event_id], actor()):
            flash("Event dismissed.", "good")
        else:
            flash("Only failed events can be dismissed.", "bad")
        return redirect(back)


def _add_actions(routes: Blueprint, services: Services) -> None:
    """Add the actions on several events to `routes`."""

    @routes.post("/events/replay")
    def replay_events() -> Response:
        selection = _selected(services.engine)
        return _replay(services, selection, again=True) if selection else _nothing_selected()

    @routes.post("/events/dismiss")
    def dismiss_events() -> Response:
        selection = _selected(services.engine)
        if selection is None:
            return _nothing_selected()
        return _dismiss(services, selection, url_for("ops.events", **chosen(*FILTERS, "since", "until")))


def _add_failures(routes: Blueprint, services: Services) -> None:
    """Add the pages of failed events to `routes`."""

    @routes.get("/failures")
    def failures() -> str:
        groups = listings.failures(services.engine, GROUPS + 1)
        return render_template("ops/failures.html", groups=groups[:GROUPS], more=len(groups) > GROUPS)

    @routes.post("/failures/<id:fingerprint>/replay")
    def replay_failures(fingerprint: str) -> Response:
        return _replay(services, Selection(fingerprint=fingerprint))

    @routes.post("/failures/<id:fingerprint>/dismiss")
    def dismiss_failures(fingerprint: str) -> Response:
        return _dismiss(services, Selection(fingerprint=fingerprint), url_for("ops.failures"))


def _chosen_selection(engine: Engine) -> Selection:
    """Return the events that the filters choose."""
    return Selection(**with_workspace(engine, chosen(*FILTERS)), **chosen_period())


def _selected(engine: Engine) -> Selection | None:
    """Return the events that the form selects: those ticked, or all that match its filters. None if none is ticked."""
    if request.form.get("which") == "all":
        return _chosen_selection(engine)
    ids = tuple(request.form.getlist("id"))
    if len(ids) > MAX_TICKED:
        abort(400, f"More than {MAX_TICKED} events are ticked.")
    return Selection(ids=ids) if ids else None


def _nothing_selected() -> Response:
    flash("No events were selected. Tick some, or choose all that match.", "bad")
    return redirect(url_for("ops.events", **chosen(*FILTERS, "since", "until")))


def _replay(services: Services, selection: Selection, *, again: bool = False) -> Response:
    def start(by: Actor) -> str:
        return replay.start(services.engine, selection, by, again=again)

    return start_run(services, start, "Replay started.")


def _dismiss(services: Services, selection: Selection, back: str) -> Response:
    if asked := ask_for_reason(back):
        return asked
    number = dismissal.dismiss_all(services.engine, selection, actor(), shown_at())
    flash(f"{number:,} failed {'event' if number == 1 else 'events'} dismissed.", "good" if number else "bad")
    return redirect(back)
