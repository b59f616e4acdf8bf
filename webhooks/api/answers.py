"""Builds API responses and declares them for the OpenAPI document."""

from collections.abc import Sequence

from flask import Response as FlaskResponse
from flask import abort
from pydantic import BaseModel
from spectree import Response

from models.types import Record
from webhooks.api import schemas


def answers(model: type[BaseModel], **others: type[BaseModel]) -> Response:
    """Return the responses of a route for the OpenAPI document.

    Args:
        model: body of the 200 response.
        others: body of each further response, by name such as `HTTP_404`. 401 is always included.
    """
    return Response(HTTP_200=model, HTTP_401=schemas.Error, **others)


def as_json(model: BaseModel, status: int = 200) -> FlaskResponse:
    """Return a model as a JSON response."""
    return FlaskResponse(model.model_dump_json(), status, content_type="application/json")


def one(model: type[BaseModel], row: Record | None) -> FlaskResponse:
    """Return a row as a JSON response.

    Raises:
        NotFound: `row` is None.
    """
    if row is None:
        abort(404, "not found")
    return as_json(model(**row))


def page(model: type[BaseModel], rows: Sequence[Record], limit: int, key: str) -> FlaskResponse:
    """Return rows as a page of a listing.

    Args:
        model: the page's model, with `items` and `next`.
        rows: the items, at most `limit`.
        limit: page size. A full page has a `next`; a shorter page is the last.
        key: field of the last row that becomes `next`.
    """
    return as_json(model.model_validate({"items": rows, "next": rows[-1][key] if len(rows) == limit else None}))
