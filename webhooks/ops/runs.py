"""Pages of long works: resyncs with their drift and withheld deletions, replays with their progress."""

from itertools import islice

from flask import Blueprint, abort, flash, redirect, render_template, session, url_for
from werkzeug import Response

from models.tables import Task
from webhooks.ops.overview import require_repairs
from worker.looking import reports
from worker.looking.progress import how_far
from worker.repair import replay
from worker.repair.resync import start
from worker.wiring import Wiring

PAGE = 50
MOST_DRIFT = 200


def add(routes: Blueprint, wiring: Wiring) -> None:
    """Add them to `routes`."""
    engine = wiring.engine

    @routes.get("/runs")
    def runs() -> str:
        return render_template("ops/runs.html", rows=reports.list_runs(engine, PAGE))

    @routes.get("/runs/<run_id>")
    def run(run_id: str) -> str:
        found = reports.run(engine, run_id)
        if found is None:
            abort(404, "There is no such run.")
        drift = list(islice(reports.drift(engine, run_id), MOST_DRIFT + 1))
        results = replay.results(engine, run_id) if found["task"] == Task.REPLAY else {}
        told = {
            "progress": how_far(engine, run_id),
            "results": results,
            "approved_by": reports.approval(engine, run_id),
        }
        return render_template(
            "ops/run.html",
            run=found,
            drift=reports.labelled(engine, drift[:MOST_DRIFT]),
            more=len(drift) > MOST_DRIFT,
            **told,
        )

    @routes.post("/runs/<run_id>/approve")
    def approve(run_id: str) -> Response:
        require_repairs(wiring)
        approving = start(engine, session["name"], approves=run_id)
        wiring.repair_bell.ring()
        flash("Approved; each is asked for by id once more before it is deleted.", "good")
        return redirect(url_for("ops.run", run_id=approving))

    @routes.post("/runs/<run_id>/cancel")
    def cancel(run_id: str) -> Response:
        if replay.cancel(engine, run_id, session["name"]):
            flash("Cancelled; what was put back is decided all the same.", "good")
        else:
            flash("It is no replay under way.", "bad")
        return redirect(url_for("ops.run", run_id=run_id))
