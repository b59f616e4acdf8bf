"""Pages of runs: resyncs with their drift and withheld deletions, replays with their progress."""

from flask import Blueprint, abort, flash, redirect, render_template, request, url_for
from werkzeug import Response

from models.enums import QUEUED
from models.tables import DriftAction, RunStatus, Task
from webhooks.ops.lists import chosen, chosen_page, chosen_period
from webhooks.ops.shared import actor, ask_for_reason, start_resync
from worker.bootstrap import Services
from worker.repair import replay
from worker.reports import effects, listings
from worker.reports.lanes import repair_workers
from worker.reports.progress import how_far


def add(routes: Blueprint, services: Services) -> None:
    """Add the pages to `routes`."""
    engine = services.engine

    @routes.get("/runs")
    def runs() -> str:
        page = listings.runs_page(engine, chosen_page(), **chosen("task", "status"), **chosen_period())
        choices = {"tasks": list(Task), "statuses": [QUEUED, *RunStatus]}
        filters = chosen("task", "status", "since", "until")
        return render_template("ops/runs.html", page=page, filters=filters, workers=workers(), **choices)

    def workers() -> int | None:
        """Return how many workers could do a queued run; None if Redis does not answer."""
        found = repair_workers(services.report_redis)
        return None if found is None else len(found)

    @routes.get("/runs/<id:run_id>")
    def run(run_id: str) -> str:
        found = listings.run(engine, run_id)
        if found is None:
            abort(404, "There is no run with this id.")
        totals = found["totals"]
        withheld = (kind for kind, counts in totals.items() if DriftAction.WITHHELD in counts)
        kind = request.args.get("kind") or next(withheld, next(iter(totals), ""))
        finding = request.args.get("finding") or None
        return render_template(
            "ops/run.html",
            run=listings.named(engine, [found])[0],
            workers=workers() if found["queued"] else None,
            kind=kind,
            finding=finding,
            page=listings.drift_page(engine, run_id, kind, chosen_page(), finding=finding) if totals else None,
            progress=how_far(engine, run_id),
            results=replay.results(engine, run_id) if found["task"] == Task.REPLAY else {},
            approved_by=listings.approval(engine, run_id),
            loss=effects.of_deletions(engine, run_id) if found["withheld"] else None,
        )

    @routes.post("/runs/<id:run_id>/approve")
    def approve(run_id: str) -> Response:
        if asked := ask_for_reason(url_for("ops.run", run_id=run_id)):
            return asked
        message = "Approved. Each object is read from WorkOS again before it is deleted."
        return start_resync(services, message, approves=run_id)

    @routes.post("/runs/<id:run_id>/cancel")
    def cancel(run_id: str) -> Response:
        if replay.cancel(engine, run_id, actor()):
            flash("Replay cancelled. Events that were already requeued are still processed.", "good")
        else:
            flash("This run is not a replay in progress.", "bad")
        return redirect(url_for("ops.run", run_id=run_id))
