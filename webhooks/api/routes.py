"""The API as a whole: who may ask, and the OpenAPI document."""

import json
from typing import Any

from flask import Blueprint, Flask, Request, jsonify, make_response, request
from flask import Response as FlaskResponse
from pydantic import ValidationError
from spectree import SpecTree
from spectree.models import SecureType, SecurityScheme, SecuritySchemeData

from webhooks.api import changes, mirror, operations, schemas
from webhooks.api.answers import answers, as_json
from webhooks.auth import token_name
from worker.bootstrap import Services
from worker.reports.health import as_report, check_health


def blueprint(services: Services, app: Flask) -> Blueprint:
    """Return the API; `app` is asked for its routes when the OpenAPI document is first read."""
    routes = Blueprint("api", __name__, url_prefix="/api/v1")
    spec = _spec()
    engine = services.engine
    tokens = services.settings.api_tokens

    @routes.before_request
    def require_token() -> FlaskResponse | None:
        kind, _, token = request.headers.get("Authorization", "").partition(" ")
        if request.endpoint == "api.openapi" or (token_name(token.strip(), tokens) and kind.lower() == "bearer"):
            return None
        answer = make_response(jsonify(error="a bearer token of API_TOKENS is needed"), 401)
        answer.headers["WWW-Authenticate"] = "Bearer"
        return answer

    @routes.get("/openapi.json")
    def openapi() -> FlaskResponse:
        return jsonify(spec.spec)

    @routes.get("/status")
    @spec.validate(resp=answers(schemas.Status, HTTP_503=schemas.Status), tags=["status"])
    def status() -> FlaskResponse:
        """Say whether the mirror can be trusted: 200 if so, 503 with the reasons if not."""
        health = check_health(engine, services.redis, services.settings)
        report = as_report(health) | {"trusted": health.trusted, "reasons": health.reasons}
        return as_json(schemas.Status(**report), 200 if health.trusted else 503)

    mirror.add(routes, spec, engine)
    operations.add(routes, spec, engine)
    changes.add(routes, spec, engine, most_threads=max(1, services.settings.web_threads // 4))
    spec.app = app
    return routes


def _spec() -> SpecTree:
    return SpecTree(
        "flask",
        title="workos-sync",
        version="1",
        description="The mirror of WorkOS for the product that it serves. Reads only.",
        page_templates={},  # they would load scripts from elsewhere
        annotations=True,
        mode="strict",
        before=_refuse,
        validation_error_status=400,
        validation_error_model=schemas.Error,
        security_schemes=[SecurityScheme(name="token", data=SecuritySchemeData(type=SecureType.HTTP, scheme="bearer"))],
        security={"token": []},
    )


def _refuse(_request: Request, response: Any, error: Any, _instance: object, _adapter: object) -> None:
    """Say which parameter is wrong in the words of every other error."""
    if error is None:
        return
    wrong: ValidationError = error
    problems = wrong.errors(include_input=False, include_url=False, include_context=False)
    said = "; ".join(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in problems)
    response.set_data(json.dumps({"error": said}))
