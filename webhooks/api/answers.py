"""Builds API responses and declares them for the OpenAPI document."""

import spectree
from flask import Response, abort
from pydantic import BaseModel, ValidationError

from models.types import Record
from webhooks.api import responses


def answers(model: type[BaseModel], **others: type[BaseModel]) -> spectree.Response:
    """Declare the body of a route's 200 response, and of `others` such as `HTTP_404`. 401 and 429 are included."""
    return spectree.Response(HTTP_200=model, **{"HTTP_401": responses.Error, "HTTP_429": responses.Error} | others)


def as_json(model: BaseModel, status: int = 200) -> Response:
    """Return a model as a JSON response."""
    return Response(model.model_dump_json(), status, content_type="application/json")


def one(model: type[BaseModel], row: Record | None) -> Response:
    """Return a row as a JSON response; raise `NotFound` if there is none."""
    if row is None:
        abort(404, "not found")
    return as_json(model(**row))


def page(model: type[BaseModel], rows: list[Record], limit: int, key: str) -> Response:
    """Return rows as a page. If there are `limit` rows, `next` is the last row's `key`; otherwise this page is last."""
    last = str(rows[-1][key]) if len(rows) == limit else None
    return as_json(model.model_validate({"items": rows, "next": last}))


def problems_in(error: ValidationError) -> str:
    """Return one line that names each invalid parameter, without its value."""
    problems = error.errors(include_input=False, include_url=False, include_context=False)
    named = [(".".join(map(str, each["loc"])), each["msg"].removeprefix("Value error, ")) for each in problems]
    return "; ".join(f"{place}: {text}" if place else text for place, text in named)
