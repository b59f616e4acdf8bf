"""How the API answers."""

from collections.abc import Mapping, Sequence
from typing import Any

from flask import Response as FlaskResponse
from flask import abort
from pydantic import BaseModel
from spectree import Response

from webhooks.api import schemas


def answers(model: type[BaseModel], **others: type[BaseModel]) -> Response:
    """Return what the OpenAPI document says of a route's answers."""
    return Response(HTTP_200=model, HTTP_401=schemas.Error, **others)


def as_json(model: BaseModel, status: int = 200) -> FlaskResponse:
    """Return a model as an answer."""
    return FlaskResponse(model.model_dump_json(), status, content_type="application/json")


def one(model: type[BaseModel], row: Mapping[str, Any] | None) -> FlaskResponse:
    """Return a row as an answer; 404 if there is none."""
    if row is None:
        abort(404, "there is no such thing here")
    return as_json(model(**row))


def page(model: type[BaseModel], rows: Sequence[Mapping[str, Any]], limit: int, key: str) -> FlaskResponse:
    """Return rows as a page; `key` names the field that the next one goes on from."""
    return as_json(model.model_validate({"items": rows, "next": rows[-1][key] if len(rows) == limit else None}))
