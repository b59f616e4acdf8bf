"""Sign-in with a token or by OpenID Connect, sessions that can be ended, CSRF protection, and security headers."""

import hashlib
import hmac
from contextlib import suppress
from http import HTTPStatus

import structlog
from flask import (
    Blueprint,
    Flask,
    Request,
    Response,
    g,
    redirect,
    render_template,
    request,
    session,
    url_for,
)
from flask.sessions import SecureCookieSession, SecureCookieSessionInterface
from flask_wtf import CSRFProtect
from flask_wtf.csrf import CSRFError
from sqlalchemy import Engine
from werkzeug import Response as AnyResponse

from models.database import DATABASE_ERRORS
from webhooks.auth import Guesses
from webhooks.ops import operators, sessions
from webhooks.ops.sessions import CONTROL
from worker import operator_sessions
from worker.bootstrap import Services
from worker.errors import TooManyGuessesError
from worker.settings import Settings

log = structlog.get_logger()

WITHOUT_SIGN_IN = frozenset(("ops.sign_in", "ops.static", "ops.oidc", "ops.oidc_callback"))
REFRESH_HEADER = "X-Refresh"
"""Sent when a page refreshes itself, which does not keep its operator signed in."""
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "img-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
}


class _Sessions(SecureCookieSessionInterface):
    def open_session(self, app: Flask, request: Request) -> SecureCookieSession | None:
        """Return the session of an operators' page. Opening one would take a tenth of the time of a delivery."""
        return super().open_session(app, request) if request.path.startswith("/ops") else None

    def get_cookie_secure(self, _app: Flask) -> bool:
        """Return whether to set the cookie's `Secure` attribute: only if the request came over HTTPS."""
        return request.is_secure


def prepare(app: Flask, settings: Settings) -> CSRFProtect:
    """Configure sessions and CSRF protection on `app`; return the protection.

    The key that signs cookies is derived from the secrets, so all processes share it, and a new token signs all
    operators out.
    """
    tokens = sorted((name, token.get_secret_value()) for name, token in settings.ops_tokens.items())
    if not tokens:  # operators sign in elsewhere
        others = [secret for secret in (settings.oidc_client_secret, *settings.workos_webhook_secrets) if secret]
        tokens = [("", secret.get_secret_value()) for secret in others]
    app.secret_key = hmac.digest(b"workos-sync ops session", repr(tokens).encode(), hashlib.sha256)
    app.session_interface = _Sessions()
    app.permanent_session_lifetime = operator_sessions.LIFETIME
    app.config.update(
        SESSION_COOKIE_NAME="workos_sync_ops",
        SESSION_COOKIE_PATH="/ops",
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Lax",  # With "Strict", a link in an alert would open the page for signing in.
        SESSION_REFRESH_EACH_REQUEST=False,  # The cookie ends with the session.
        WTF_CSRF_CHECK_DEFAULT=False,  # Only the pages need it.
        WTF_CSRF_TIME_LIMIT=None,  # As long as the session.
    )
    return CSRFProtect(app)


def add(routes: Blueprint, services: Services, csrf: CSRFProtect) -> None:
    """Require sign-in and CSRF tokens on all of `routes`; add the pages for sign-in and sign-out."""
    _add_checks(routes, services, csrf)
    settings, engine, guesses = services.settings, services.engine, Guesses(services.redis)

    @routes.route("/sign-in", methods=["GET", "POST"])
    def sign_in() -> AnyResponse | str | tuple[str, int]:
        if request.method == "GET":
            return render_template("ops/sign_in.html", next="")
        target = sessions.redirect_target(request.form.get("next", ""))
        name = guesses.name_of(request.form.get("token", "").strip(), settings.ops_tokens, request.remote_addr)
        if name is None:
            log.warning("sign_in_failed", address=request.remote_addr)
            wanted = request.form.get("next", "")
            return sessions.refused("Invalid token. Valid tokens are in OPS_TOKENS.", 401, wanted)
        sessions.start(engine, name)
        return redirect(target)

    @routes.post("/sign-out")
    def sign_out() -> AnyResponse:
        if isinstance(id := session.get("id"), str):  # a proxy keeps no session here
            operator_sessions.sign_out(engine, id, g.operator)
        session.clear()
        return redirect(url_for("ops.sign_in"))

    @routes.errorhandler(TooManyGuessesError)
    def slowed(error: TooManyGuessesError) -> tuple[str, int, dict[str, str]]:
        page = render_template("ops/error.html", title="Too many attempts", message=f"{str(error).capitalize()}.")
        return page, 429, {"Retry-After": str(error.seconds)}


def _add_checks(routes: Blueprint, services: Services, csrf: CSRFProtect) -> None:
    @routes.before_request
    def authenticate() -> AnyResponse | tuple[str, int] | None:
        if request.endpoint not in WITHOUT_SIGN_IN:
            found = _operator(services)
            if found is None:
                wanted = "" if CONTROL.search(request.path) else request.path
                return render_template("ops/sign_in.html", next=wanted), 401
            g.operator, g.may_act = found
        csrf.protect()
        if request.method == "POST" and request.endpoint not in {"ops.sign_in", "ops.sign_out"} and not g.may_act:
            log.warning("action_refused", who=g.operator, endpoint=request.endpoint)
            message = "The setting OPS_READ_ONLY names you or your group: you can look at the pages, but not act."
            return render_template("ops/error.html", title="You may not act", message=message), HTTPStatus.FORBIDDEN
        return None

    @routes.after_request
    def add_security_headers(response: Response) -> Response:
        response.headers.update(SECURITY_HEADERS)
        if request.endpoint != "ops.static":
            response.headers["Cache-Control"] = "no-store"
        return response

    @routes.errorhandler(CSRFError)
    def forged(error: Exception) -> tuple[str, int]:
        log.warning("csrf_rejected", endpoint=request.endpoint)
        message = "The form's security token is missing or has expired. Reload the page and try again."
        return render_template("ops/error.html", title="Form expired", message=message), 403


def _operator(services: Services) -> operators.Operator | None:
    """Return the operator who sends the request, named by a trusted proxy or signed in; None if there is none."""
    if found := operators.by_proxy(services.settings):
        g.asked_at = operator_sessions.current_time(services.engine)
        return found
    if signed_in := _signed_in(services.engine):
        g.asked_at = signed_in.at
        return operators.by_session(services.settings, signed_in.who, signed_in.entries)
    return None


def _signed_in(engine: Engine) -> operator_sessions.SignedIn | None:
    """Return the operator whose session the cookie names, and record their activity; None if there is none."""
    id = session.get("id")
    if not isinstance(id, str):
        return None
    found = operator_sessions.signed_in(engine, id)
    if found is not None and found.to_record and REFRESH_HEADER not in request.headers:
        with suppress(*DATABASE_ERRORS):  # Pages can be read even if nothing can be written.
            operator_sessions.record_activity(engine, id)
    return found
