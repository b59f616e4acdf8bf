"""Who may enter the pages: sign-in with a named token of OPS_TOKENS, forged posts refused, nothing from elsewhere."""

import hashlib
import hmac
from datetime import timedelta
from typing import Any

import structlog
from flask import Blueprint, Flask, Response, flash, redirect, render_template, request, session, url_for
from flask.sessions import SecureCookieSessionInterface
from flask_wtf import CSRFProtect
from flask_wtf.csrf import CSRFError
from werkzeug import Response as AnyResponse

from webhooks.auth import token_name
from worker.settings import Settings

log = structlog.get_logger()

SIGNED_IN_FOR = timedelta(hours=12)
POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'"
)


class _Sessions(SecureCookieSessionInterface):
    """Cookies for https only, wherever the page was asked for by https."""

    def get_cookie_secure(self, _app: Flask) -> bool:
        """Return whether the cookie is marked so."""
        return request.is_secure


def prepare(app: Flask, settings: Settings) -> CSRFProtect:
    """Set `app` up for sessions and forms; returns what refuses forged posts.

    The key that signs the cookies is made of the tokens: every process has the same, and a changed token signs
    everybody out.
    """
    tokens = sorted((name, token.get_secret_value()) for name, token in settings.ops_tokens.items())
    app.secret_key = hmac.digest(b"workos-sync ops session", repr(tokens).encode(), hashlib.sha256)
    app.session_interface = _Sessions()
    app.permanent_session_lifetime = SIGNED_IN_FOR
    app.config.update(
        SESSION_COOKIE_NAME="workos_sync_ops",
        SESSION_COOKIE_PATH="/ops",
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Strict",
        WTF_CSRF_CHECK_DEFAULT=False,  # WorkOS's deliveries are signed instead
        WTF_CSRF_TIME_LIMIT=None,  # as long as the session
    )
    return CSRFProtect(app)


def add(routes: Blueprint, settings: Settings, forms: CSRFProtect) -> None:
    """Guard all of `routes`, and add sign-in and sign-out."""
    open_to_all = {f"{routes.name}.sign_in", f"{routes.name}.static"}

    @routes.before_request
    def guard() -> AnyResponse | tuple[str, int] | None:
        if request.endpoint not in open_to_all and session.get("name") not in settings.ops_tokens:
            return render_template("ops/sign_in.html", next=request.path), 401
        forms.protect()
        return None

    @routes.after_request
    def harden(response: Response) -> Response:
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "same-origin"
        if request.endpoint != f"{routes.name}.static":
            response.headers["Cache-Control"] = "no-store"
        return response

    @routes.errorhandler(CSRFError)
    def forged(error: Any) -> tuple[str, int]:
        log.warning("forged_post_refused", endpoint=request.endpoint)
        return render_template(
            "ops/error.html", title="Refused", said="The form is not from this page, or too old."
        ), 403

    @routes.route("/sign-in", methods=["GET", "POST"])
    def sign_in() -> AnyResponse | str | tuple[str, int]:
        if request.method == "GET":
            return render_template("ops/sign_in.html", next="")
        name = token_name(request.form.get("token", "").strip(), settings.ops_tokens)
        if name is None:
            log.warning("sign_in_refused", address=request.remote_addr)
            flash("This is none of the tokens of OPS_TOKENS.", "bad")
            return render_template("ops/sign_in.html", next=request.form.get("next", "")), 401
        session.clear()
        session.permanent = True
        session["name"] = name
        log.info("signed_in", who=name)
        return redirect(_within(routes, request.form.get("next", "")))

    @routes.post("/sign-out")
    def sign_out() -> AnyResponse:
        session.clear()
        return redirect(url_for(f"{routes.name}.sign_in"))


def _within(routes: Blueprint, path: str) -> str:
    """Return where to go after signing in: a page of ours, whatever the form says."""
    home = url_for(f"{routes.name}.overview")
    return path if path.startswith(home) and "//" not in path and "\\" not in path else home
