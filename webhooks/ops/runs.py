"""Pages of runs: resyncs with their drift and withheld deletions, replays with their progress."""

from itertools import islice

from flask import Blueprint, abort, flash, redirect, render_template, url_for
from werkzeug import Response

from models.tables import Task
from webhooks.ops.shared import PAGE, actor, ask_for_reason, start_resync
from worker.bootstrap import Services
from worker.queue.doorbell import REPAIR
from worker.repair import replay
from worker.reports import effects, listings
from worker.reports.health import one_lane
from worker.reports.progress import how_far

MAX_DRIFT = 200


def add(routes: Blueprint, services: Services) -> None:
    """Add the pages to `routes`."""
    engine = services.engine

    @routes.get("/runs")
    def runs() -> str:
        return render_template("ops/runs.html", rows=listings.list_runs(engine, PAGE))

    @routes.get("/runs/<id:run_id>")
    def run(run_id: str) -> str:
        found = listings.run(engine, run_id)
        if found is None:
            abort(404, "There is no run with this id.")
        drift = list(islice(listings.drift(engine, run_id), MAX_DRIFT + 1))
        return render_template(
            "ops/run.html",
            run=found,
            workers=one_lane(services.report_redis, REPAIR).workers if found["queued"] else None,
            drift=listings.labelled(engine, drift[:MAX_DRIFT]),
            more=len(drift) > MAX_DRIFT,
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
