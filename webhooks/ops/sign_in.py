"""Sign-in with a token from OPS_TOKENS, CSRF protection, and security headers."""

import hashlib
import hmac
from datetime import timedelta

import structlog
from flask import Blueprint, Flask, Response, flash, redirect, render_template, request, session, url_for
from flask.sessions import SecureCookieSessionInterface
from flask_wtf import CSRFProtect
from flask_wtf.csrf import CSRFError
from werkzeug import Response as AnyResponse

from webhooks.auth import token_name
from worker.settings import Settings

log = structlog.get_logger()

SESSION_LIFETIME = timedelta(hours=12)
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
}


class _Sessions(SecureCookieSessionInterface):
    def get_cookie_secure(self, _app: Flask) -> bool:
        """Return whether to set the cookie's `Secure` attribute: only if the request came over HTTPS."""
        return request.is_secure


def prepare(app: Flask, settings: Settings) -> CSRFProtect:
    """Configure sessions and CSRF protection on `app`; return the protection.

    The key that signs cookies is derived from the tokens, so all processes share it, and a new token signs all
    operators out.
    """
    tokens = sorted((name, token.get_secret_value()) for name, token in settings.ops_tokens.items())
    app.secret_key = hmac.digest(b"workos-sync ops session", repr(tokens).encode(), hashlib.sha256)
    app.session_interface = _Sessions()
    app.permanent_session_lifetime = SESSION_LIFETIME
    app.config.update(
        SESSION_COOKIE_NAME="workos_sync_ops",
        SESSION_COOKIE_PATH="/ops",
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Strict",
        WTF_CSRF_CHECK_DEFAULT=False,  # Only the pages need it.
        WTF_CSRF_TIME_LIMIT=None,  # As long as the session.
    )
    return CSRFProtect(app)


def add(routes: Blueprint, settings: Settings, csrf: CSRFProtect) -> None:
    """Require sign-in and CSRF tokens on all of `routes`; add the pages for sign-in and sign-out."""

    @routes.before_request
    def authenticate() -> AnyResponse | tuple[str, int] | None:
        if request.endpoint not in {"ops.sign_in", "ops.static"} and session.get("name") not in settings.ops_tokens:
            return render_template("ops/sign_in.html", next=request.path), 401
        csrf.protect()
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

    @routes.route("/sign-in", methods=["GET", "POST"])
    def sign_in() -> AnyResponse | str | tuple[str, int]:
        if request.method == "GET":
            return render_template("ops/sign_in.html", next="")
        name = token_name(request.form.get("token", "").strip(), settings.ops_tokens)
        if name is None:
            log.warning("sign_in_failed", address=request.remote_addr)
            flash("Invalid token. Valid tokens are in OPS_TOKENS.", "bad")
            return render_template("ops/sign_in.html", next=request.form.get("next", "")), 401
        session.clear()
        session.permanent = True
        session["name"] = name
        log.info("sign_in_succeeded", who=name)
        return redirect(_redirect_target(request.form.get("next", "")))

    @routes.post("/sign-out")
    def sign_out() -> AnyResponse:
        session.clear()
        return redirect(url_for("ops.sign_in"))


def _redirect_target(path: str) -> str:
    """Return `path` if it is one of the pages, else the overview, to prevent open redirects."""
    home = url_for("ops.overview")
    return path if path.startswith(home) and "//" not in path and "\\" not in path else home
