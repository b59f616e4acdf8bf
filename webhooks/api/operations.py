"""API routes that read the inbox, runs and the audit."""

from flask import Blueprint, Response
from spectree import SpecTree
from sqlalchemy import Engine

from models.tables import Task
from webhooks.api import schemas
from webhooks.api.answers import answers, one, page
from worker.repair.replay import results
from worker.reports import listings


def add(routes: Blueprint, spec: SpecTree, engine: Engine) -> None:
    """Add the routes to `routes`, and their descriptions to `spec`."""

    @routes.get("/events")
    @spec.validate(resp=answers(schemas.Page[schemas.Event]), tags=["operations"])
    def list_events(query: schemas.EventQuery) -> Response:
        """List events in the inbox, newest first."""
        rows = listings.list_events(engine, **query.model_dump())
        return page(schemas.Page[schemas.Event], rows, query.limit, "id")

    @routes.get("/events/<path:event_id>")
    @spec.validate(resp=answers(schemas.WholeEvent, HTTP_404=schemas.Error), tags=["operations"])
    def show_event(event_id: str) -> Response:
        """Return one event with its payload, outcome, attempts and changes."""
        return one(schemas.WholeEvent, listings.show_event(engine, event_id))

    @routes.get("/audit")
    @spec.validate(resp=answers(schemas.Page[schemas.Audit]), tags=["operations"])
    def list_audit(query: schemas.AuditQuery) -> Response:
        """List the actions of operators and settings, newest first. All filters must match."""
        filters = query.model_dump(exclude={"after", "limit"})
        rows = listings.list_audit(engine, filters, after=query.after, limit=query.limit)
        return page(schemas.Page[schemas.Audit], rows, query.limit, "id")

    @routes.get("/replays")
    @spec.validate(resp=answers(schemas.Page[schemas.Replay]), tags=["operations"])
    def list_replays(query: schemas.Paging) -> Response:
        """List replays, newest first."""
        rows = listings.list_runs(engine, query.limit, task=Task.REPLAY, after=query.after)
        return page(schemas.Page[schemas.Replay], rows, query.limit, "id")

    @routes.get("/replays/<run_id>")
    @spec.validate(resp=answers(schemas.WholeReplay, HTTP_404=schemas.Error), tags=["operations"])
    def show_replay(run_id: str) -> Response:
        """Return a replay, and the current status of its events."""
        row = listings.run(engine, run_id, task=Task.REPLAY)
        return one(schemas.WholeReplay, row and {**row, "results": results(engine, run_id)})

    @routes.get("/resyncs")
    @spec.validate(resp=answers(schemas.Page[schemas.Resync]), tags=["operations"])
    def list_resyncs(query: schemas.Paging) -> Response:
        """List resyncs, newest first."""
        rows = listings.list_runs(engine, query.limit, task=Task.RESYNC, after=query.after)
        return page(schemas.Page[schemas.Resync], rows, query.limit, "id")

    @routes.get("/resyncs/<run_id>")
    @spec.validate(resp=answers(schemas.WholeResync, HTTP_404=schemas.Error), tags=["operations"])
    def show_resync(run_id: str) -> Response:
        """Return a resync, with the number of differences it found."""
        return one(schemas.WholeResync, listings.run(engine, run_id, task=Task.RESYNC))
