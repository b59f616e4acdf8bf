"""Shared by all ways to sign in: starts sessions, refuses people, and checks which page to open afterwards."""

import re

import structlog
from flask import abort, flash, render_template, request, session, url_for
from sqlalchemy import Engine

from worker import operator_sessions

log = structlog.get_logger()

CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def start(engine: Engine, who: str, entries: list[str] | None = None) -> None:
    """Sign in `who`, and end the browser's previous session. `entries` is that of `operator_sessions.sign_in`."""
    if isinstance(former := session.get("id"), str):
        operator_sessions.sign_out(engine, former, who)
    id = operator_sessions.sign_in(engine, who, request.remote_addr, entries)
    session.clear()
    session.permanent = True
    session["id"] = id
    log.info("sign_in_succeeded", who=who)


def refused(message: str, status: int, wanted: str = "") -> tuple[str, int]:
    """Return the sign-in page with a message. After the sign-in, the browser opens the page `wanted`."""
    flash(message, "bad")
    return render_template("ops/sign_in.html", next=wanted), status


def redirect_target(path: str) -> str:
    """Return `path` if it is one of the pages, else the overview, to prevent open redirects.

    Respond with 400 if it contains control characters, which no page's path does.
    """
    if CONTROL.search(path):
        abort(400, "The page to open contains control characters.")
    home = url_for("ops.overview")
    return path if path.startswith(home) and "//" not in path and "\\" not in path else home
