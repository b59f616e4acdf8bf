"""The API route that answers whether a person has access, within a bound or once the mirror has caught up."""

from flask import Blueprint, Response
from spectree import SpecTree
from sqlalchemy import Engine

from models.access import Access, Stale, access_of
from models.database import session
from webhooks.api import requests, responses
from webhooks.api.answers import answers, as_json
from webhooks.api.waiting import Waiting
from worker.decision.payload import EPOCH
from worker.reports.completeness import complete_to, is_applied


def add(routes: Blueprint, spec: SpecTree, engine: Engine, waiting: Waiting) -> None:
    """Add the route to `routes`, and its description to `spec`."""

    @routes.get("/access")
    @spec.validate(
        resp=answers(responses.Access, HTTP_400=responses.Error, HTTP_503=responses.StaleAnswer), tags=["mirror"]
    )
    def access(query: requests.AccessQuery) -> Response:
        """Return a person's role in a workspace, null for no access.

        With `wait`, the response is delayed by up to five seconds until the mirror has caught up.

        400: the bound is smaller than the smallest that can be met, which the message names.

        503: the answer may be older than the bound, or than `wait`. Treat it as no access, or retry after
        `Retry-After`.
        """
        try:
            found = _answer(engine, query, waiting)
        except ValueError as error:
            return as_json(responses.Error(error=str(error)), 400)
        except Stale as stale:
            reason = responses.StaleAnswer(
                error=stale.reason, complete_to=stale.complete_to, retry_after=stale.retry_after
            )
            response = as_json(reason, 503)
            response.headers["Retry-After"] = str(stale.retry_after)
            return response
        response = as_json(responses.Access(**found._asdict()))
        response.headers["Cache-Control"] = "no-store"
        return response


def _answer(engine: Engine, query: requests.AccessQuery, waiting: Waiting) -> Access:
    event_id, time = query.wait_event, query.wait_time
    if event_id is not None and not waiting.until(lambda: is_applied(engine, event_id)):
        raise Stale(f"event {event_id} is not applied", complete_to(engine), 5)
    if time is not None:
        waiting.until(lambda: (complete_to(engine) or EPOCH) >= time)
    with session(engine) as opened:
        return access_of(opened, query.user_id, query.organization_id, query.max_staleness, complete_to=time)
