"""Sign-in by OpenID Connect: WorkOS AuthKit or any other issuer, through Authlib (extra `oidc`)."""

from typing import Any

import structlog
from flask import Blueprint, Flask, redirect, request, session, url_for
from werkzeug import Response

from webhooks.ops import operators, sessions
from worker.bootstrap import Services
from worker.oidc_issuer import discovery_url, require_installed
from worker.settings import Settings

log = structlog.get_logger()

SECONDS = 10.0
"""Time limit of each call to the issuer. A thread waits for the call."""
MAX_ATTEMPTS = 4
"""Maximum number of unfinished sign-ins in a browser, such as one in each tab."""
REFUSED = "You are signed in at the identity provider, but OPS_ALLOWED names neither you nor one of your groups."
FAILED = "The identity provider did not confirm who you are. Try again, or sign in with a token."


def add(app: Flask, routes: Blueprint, services: Services) -> None:
    """Add the two routes of the authorization code flow (OpenID Connect Core 1.0, section 3.1), if OIDC_ISSUER is set.

    Authlib keeps state, nonce and PKCE verifier in the session of `app`, and verifies the ID token.

    Raises:
        ConfigurationError: the extra is not installed.
    """
    settings = services.settings
    if settings.oidc_issuer is None:
        return
    client, errors = _client(app, settings)

    @routes.get("/oidc")
    def oidc() -> Response | tuple[str, int]:
        _forget_old_attempts()
        try:
            answer: Response = client.authorize_redirect(url_for("ops.oidc_callback", _external=True))
        except errors as error:
            return _failed(error)
        session["next"] = sessions.redirect_target(request.args.get("next", ""))
        return answer

    @routes.get("/oidc/callback")
    def oidc_callback() -> Response | tuple[str, int]:
        wanted = sessions.redirect_target(str(session.get("next", "")))
        try:
            claims = _claims(client, settings.oidc_issuer)
        except errors as error:
            return _failed(error)
        found = operators.by_claims(settings, claims)
        if found is None:
            log.warning("sign_in_refused", address=request.remote_addr, reason="no entry of OPS_ALLOWED applies")
            return sessions.refused(REFUSED, 403)
        sessions.start(services.engine, *found)
        return redirect(wanted)

    def _failed(error: Exception) -> tuple[str, int]:
        log.warning("oidc_failed", error=type(error).__name__)
        return sessions.refused(FAILED, 401)


def _client(app: Flask, settings: Settings) -> tuple[Any, tuple[type[Exception], ...]]:
    """Return Authlib's client for the issuer, and the errors that its calls raise. Makes no call yet."""
    require_installed()
    from authlib.integrations.base_client import OAuthError  # noqa: PLC0415 - an extra
    from authlib.integrations.flask_client import OAuth  # noqa: PLC0415
    from joserfc.errors import JoseError  # noqa: PLC0415
    from requests import RequestException  # noqa: PLC0415

    secret = settings.oidc_client_secret
    client = OAuth(app).register(
        "oidc",
        client_id=settings.oidc_client_id,
        client_secret=secret and secret.get_secret_value(),
        server_metadata_url=discovery_url(settings.oidc_issuer or ""),
        client_kwargs={"scope": "openid email profile", "code_challenge_method": "S256", "default_timeout": SECONDS},
    )
    # RuntimeError: the discovery document lacks an endpoint. The last four: an answer is malformed.
    unusable = (RuntimeError, ValueError, LookupError, TypeError, AttributeError)
    return client, (OAuthError, JoseError, RequestException, *unusable)


def _forget_old_attempts() -> None:
    """Forget all but the newest unfinished sign-ins, because a browser drops a cookie that is too large."""
    states = sorted((key for key in session if key.startswith("_state_")), key=lambda key: session[key]["exp"])
    for key in states[: -MAX_ATTEMPTS + 1]:
        del session[key]


def _claims(client: Any, issuer: str | None) -> dict[str, Any]:
    """Return the verified claims of the ID token, with those of the UserInfo endpoint, if the issuer has one.

    An issuer may return address and groups only there (OpenID Connect Core 1.0, section 5.4). The endpoint must answer
    about the same person (section 5.3.2).
    """
    # Authlib also accepts a token for another client if its `azp` names this one.
    expected = {"iss": {"values": [issuer]}, "aud": {"values": [client.client_id]}}
    token = client.authorize_access_token(claims_options=expected)
    claims = dict(token["userinfo"])
    if client.load_server_metadata().get("userinfo_endpoint"):
        shown = client.userinfo(token=token)
        if shown.get("sub") != claims["sub"]:
            raise ValueError("UserInfo is about another person")
        if "email" in claims:  # only the source of an address says whether it is verified
            shown = {name: value for name, value in shown.items() if name != "email_verified"}
        claims = {**shown, **claims}
    return claims
