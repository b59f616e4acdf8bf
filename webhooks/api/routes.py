"""The API's blueprint: authentication, status and the OpenAPI document."""

import json

from flask import Blueprint, Flask, Request, Response, g, jsonify, make_response, request
from pydantic import ValidationError
from spectree import SpecTree
from spectree.models import SecureType, SecurityScheme, SecuritySchemeData

from webhooks.api import access, changes, mirror, operations, refresh, responses
from webhooks.api.answers import answers, as_json, problems_in
from webhooks.api.waiting import Waiting
from webhooks.auth import Guesses
from worker.bootstrap import Services
from worker.errors import TimeError, TooManyGuessesError
from worker.reports.completeness import complete_to
from worker.reports.verdict import as_report, judge

COMPLETE_TO = "Mirror-Complete-To"
"""The header with the time up to which the mirror was complete before the answer was made: ISO 8601, in UTC."""


def blueprint(services: Services, app: Flask) -> Blueprint:
    """Return the API as a blueprint for `app`, whose routes the OpenAPI document lists when it is first requested."""
    routes = Blueprint("api", __name__, url_prefix="/api/v1")
    spec = _spec()
    engine = services.engine
    guesses = Guesses(services.redis)

    @routes.before_request
    def require_token() -> Response | None:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if request.endpoint == "api.openapi":
            return None
        try:
            known = guesses.name_of(token.strip(), services.settings.api_tokens, request.remote_addr)
        except TooManyGuessesError as error:
            response = make_response(jsonify(error=str(error)), 429)
            response.headers["Retry-After"] = str(error.seconds)
            return response
        if known and scheme.lower() == "bearer":
            g.token_name = known
            # Before the answer is made, so that it is not newer than the answer.
            g.complete_to = complete_to(engine)
            return None
        response = make_response(jsonify(error="missing or invalid bearer token (see API_TOKENS)"), 401)
        response.headers["WWW-Authenticate"] = "Bearer"
        return response

    @routes.after_request
    def say_how_complete(response: Response) -> Response:
        if (at := g.get("complete_to")) is not None:
            response.headers[COMPLETE_TO] = at.isoformat()
        return response

    @routes.get("/openapi.json")
    def openapi() -> Response:
        return jsonify(spec.spec)

    @routes.get("/status")
    @spec.validate(resp=answers(responses.Status, HTTP_503=responses.Status), tags=["status"])
    def status() -> Response:
        """Return the state of the mirror: 200 if it is trustworthy, 503 with the reasons if not."""
        verdict = judge(engine, services.report_redis, services.settings)
        report = as_report(verdict) | {"trusted": verdict.trusted, "reasons": verdict.reasons}
        return as_json(responses.Status(**report), 200 if verdict.trusted else 503)

    @routes.errorhandler(TimeError)
    def no_such_time(error: TimeError) -> Response:
        return as_json(responses.Error(error=str(error)), error.status)

    max_threads = max(1, services.settings.web_threads // 4)
    waiting = Waiting(max_threads)
    mirror.add(routes, spec, engine)
    access.add(routes, spec, engine, waiting)
    refresh.add(routes, spec, services, waiting)
    operations.add(routes, spec, engine)
    changes.add(routes, spec, engine, max_threads)
    spec.app = app
    return routes


def _spec() -> SpecTree:
    return SpecTree(
        "flask",
        title="workos-sync",
        version="1",
        description="The mirror of WorkOS. Tokens only read it, except those named in API_REFRESH_NAMES: they may also "
        "ask for something to be read from WorkOS at once (POST /api/v1/refresh).",
        page_templates={},  # They load scripts from other hosts.
        annotations=True,
        mode="strict",
        before=_describe_invalid_parameters,
        validation_error_status=400,
        validation_error_model=responses.Error,
        security_schemes=[SecurityScheme(name="token", data=SecuritySchemeData(type=SecureType.HTTP, scheme="bearer"))],
        security={"token": []},
    )


def _describe_invalid_parameters(
    _request: Request, response: Response, error: Exception | None, _instance: object, _adapter: object
) -> None:
    """Replace spectree's response to invalid parameters with an `Error` that names each of them."""
    if isinstance(error, ValidationError):
        response.set_data(json.dumps({"error": problems_in(error)}))
