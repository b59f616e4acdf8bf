"""API routes that read the inbox, runs and the audit."""

from flask import Blueprint, Response
from spectree import SpecTree
from sqlalchemy import Engine

from models.tables import Task
from webhooks.api import requests, responses
from webhooks.api.answers import answers, one, page
from worker.repair.replay import results
from worker.reports import listings


def add(routes: Blueprint, spec: SpecTree, engine: Engine) -> None:
    """Add the routes to `routes`, and their descriptions to `spec`."""

    @routes.get("/events")
    @spec.validate(resp=answers(responses.Page[responses.Event]), tags=["operations"])
    def list_events(query: requests.EventQuery) -> Response:
        """List events in the inbox, newest first."""
        rows = listings.list_events(engine, **query.model_dump())
        return page(responses.Page[responses.Event], rows, query.limit, "id")

    @routes.get("/events/<path:event_id>")
    @spec.validate(resp=answers(responses.WholeEvent, HTTP_404=responses.Error), tags=["operations"])
    def show_event(event_id: str) -> Response:
        """Return one event with its payload, outcome, attempts and changes."""
        return one(responses.WholeEvent, listings.show_event(engine, event_id))

    @routes.get("/audit")
    @spec.validate(resp=answers(responses.Page[responses.Audit]), tags=["operations"])
    def list_audit(query: requests.AuditQuery) -> Response:
        """List the actions of operators and settings, newest first. All filters must match."""
        filters = query.model_dump(exclude={"after", "limit"})
        rows = listings.list_audit(engine, filters, after=query.after, limit=query.limit)
        return page(responses.Page[responses.Audit], rows, query.limit, "id")

    @routes.get("/replays")
    @spec.validate(resp=answers(responses.Page[responses.Replay]), tags=["operations"])
    def list_replays(query: requests.Paging) -> Response:
        """List replays, newest first."""
        rows = listings.list_runs(engine, query.limit, task=Task.REPLAY, after=query.after)
        return page(responses.Page[responses.Replay], rows, query.limit, "id")

    @routes.get("/replays/<run_id>")
    @spec.validate(resp=answers(responses.WholeReplay, HTTP_404=responses.Error), tags=["operations"])
    def show_replay(run_id: str) -> Response:
        """Return a replay, and the current status of its events."""
        row = listings.run(engine, run_id, task=Task.REPLAY)
        return one(responses.WholeReplay, row and {**row, "results": results(engine, run_id)})

    @routes.get("/resyncs")
    @spec.validate(resp=answers(responses.Page[responses.Resync]), tags=["operations"])
    def list_resyncs(query: requests.Paging) -> Response:
        """List resyncs, newest first."""
        rows = listings.list_runs(engine, query.limit, task=Task.RESYNC, after=query.after)
        return page(responses.Page[responses.Resync], rows, query.limit, "id")

    @routes.get("/resyncs/<run_id>")
    @spec.validate(resp=answers(responses.WholeResync, HTTP_404=responses.Error), tags=["operations"])
    def show_resync(run_id: str) -> Response:
        """Return a resync, with the number of differences it found."""
        return one(responses.WholeResync, listings.run(engine, run_id, task=Task.RESYNC))
