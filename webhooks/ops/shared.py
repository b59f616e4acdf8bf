"""Shared by pages: the reason field of a form, and starting runs."""

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial

from flask import abort, flash, g, redirect, request, url_for
from werkzeug import Response

from models.tables import Via
from models.types import MAX_ID
from worker.audit import Actor
from worker.bootstrap import Services
from worker.decision.payload import clean
from worker.errors import ConfigurationError
from worker.repair.environment import is_bound
from worker.repair.resync import resync
from worker.reports.lanes import repair_workers

MAX_REASON = 500
"""Characters of a reason, as in the forms."""


def row_id(text: str) -> int:
    """Return the id of a row; raise `ValueError` for a number that is none."""
    if not 0 < (id := int(text)) <= MAX_ID:
        raise ValueError(text)
    return id


def chosen_change() -> int | None:
    """Return the change that the form names; None if it names none. Anything else is answered with 400."""
    text = request.form.get("change", "").strip()
    try:
        return row_id(text) if text else None
    except ValueError:
        abort(400, "change is not the id of a change")


def chosen_time() -> datetime | None:
    """Return the time, in UTC, that the query parameter `at` names; None if it is empty. 400 for anything else."""
    text = request.args.get("at", "").strip()
    try:
        at = datetime.fromisoformat(text) if text else None
        return at and at.replace(tzinfo=at.tzinfo or UTC).astimezone(UTC)
    except (ValueError, OverflowError):
        abort(400, "at is not a time such as 2026-01-31T12:30:00, in UTC")


def entered_reason() -> str | None:
    """Return the reason that the operator entered in the form; None if it is empty."""
    return clean(request.form.get("reason", "").strip())[:MAX_REASON] or None


def actor() -> Actor:
    """Return the operator who is signed in, with the reason that they entered."""
    return Actor(g.operator, Via.PAGE, entered_reason())


def may_act() -> bool:
    """Return whether the operator who is signed in may act, and not only look (`OPS_READ_ONLY`)."""
    return bool(g.get("may_act"))


def ask_for_reason(back: str) -> Response | None:
    """Return None if the operator entered a reason, else a redirect to `back`, which asks for one."""
    if entered_reason() is not None:
        return None
    flash("Enter a reason. It is recorded in the audit.", "bad")
    return redirect(back)


def start_run(services: Services, start: Callable[[Actor], str], message: str) -> Response:
    """Create a run, wake a worker, and redirect to the run's page, which shows `message`.

    `start` takes the operator and returns the run's id.
    """
    run_id = start(actor())
    services.repair_bell.ring()
    workers = repair_workers(services.report_redis)
    if workers:
        flash(message, "good")
    else:
        why = "Redis does not answer" if workers is None else "no worker is running"
        flash(f"{message} It is queued; {why}. Start workos-sync worker.", "warn")
    return redirect(url_for("ops.run", run_id=run_id))


def start_resync(
    services: Services,
    message: str = "Resync requested.",
    organization_id: str | None = None,
    approves: str | None = None,
) -> Response:
    """Start a resync of everything, of a workspace, or of the deletions that the run `approves` withheld.

    Raises:
        ConfigurationError: no worker can call WorkOS, so the run would wait forever.
    """
    if not services.settings.repairs and not is_bound(services.engine):
        raise ConfigurationError("WORKOS_API_KEY is not set, so no worker can call WorkOS; set it and WORKOS_CLIENT_ID")
    start = partial(resync.start, services.engine, organization_id=organization_id, approves=approves)
    return start_run(services, start, message)
