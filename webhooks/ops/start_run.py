"""How a page starts work: create the run, wake a worker, and show the run."""

from collections.abc import Callable
from typing import Any

from flask import flash, redirect, session, url_for
from werkzeug import Response

from worker.bootstrap import Services
from worker.errors import ConfigurationError
from worker.repair.resync import resync


def start_run(services: Services, start: Callable[[str], str], message: str) -> Response:
    """Start a run, and return a redirect to its page.

    Args:
        services: the parts of this process.
        start: creates the run, given the operator's name, and returns its id; its errors pass through.
        message: shown on the run's page.
    """
    run_id = start(session["name"])
    services.repair_bell.ring()
    flash(message, "good")
    return redirect(url_for("ops.run", run_id=run_id))


def start_resync(services: Services, message: str = "Resync started.", **scope: Any) -> Response:
    """Start a resync; `scope` as of `worker.repair.resync.resync.start`.

    Raises:
        ConfigurationError: no worker can call WorkOS, so the run would wait forever.
    """
    if not services.settings.repairs:
        raise ConfigurationError("WORKOS_API_KEY is not set, so no worker can call WorkOS; set it and WORKOS_CLIENT_ID")
    return start_run(services, lambda who: resync.start(services.engine, who, **scope), message)
