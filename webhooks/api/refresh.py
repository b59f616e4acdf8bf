"""The API route by which a product asks for something to be read from WorkOS at once."""

from flask import Blueprint, Response, g, request
from pydantic import ValidationError
from spectree import SpecTree

from models.access import access_of
from models.database import in_transaction, read_transaction, session
from webhooks.api import requests, responses
from webhooks.api.answers import answers, as_json, problems_in
from webhooks.api.waiting import Waiting
from worker.bootstrap import Services
from worker.decision.payload import parse_json
from worker.repair import refresh as refreshes

RESPONSES = answers(
    responses.Refreshed,
    HTTP_202=responses.PendingRefresh,
    HTTP_400=responses.Error,
    HTTP_403=responses.Error,
    HTTP_404=responses.Error,
)


def add(routes: Blueprint, spec: SpecTree, services: Services, waiting: Waiting) -> None:
    """Add the route to `routes`, and its description to `spec`."""
    engine, bell, allowed = services.engine, services.tail_bell, services.settings.api_refresh_names

    # Not validated by spectree, which fails on JSON that is nested too deep.
    @routes.post("/refresh")
    @spec.validate(json=requests.RefreshRequest, resp=RESPONSES, tags=["mirror"], skip_validation=True)
    def refresh() -> Response:
        """Read an object, or a person's access to a workspace, from WorkOS; answer once the mirror has its state.

        Give `kind` and `id`, or `organization_id` and `user_id`. The state was read after this request came.

        202: the read failed, has not ended within five seconds, or too many requests wait. The read is made later.

        403: the token may only read the mirror. API_REFRESH_NAMES names those that may ask for this.

        404: neither WorkOS nor the mirror knows the id.

        429: 1,000 requests of this token wait.
        """
        if g.token_name not in allowed:
            error = f"the token {g.token_name} may only read; to let it refresh, add its name to API_REFRESH_NAMES"
            return as_json(responses.Error(error=error), 403)
        try:
            target = requests.RefreshRequest.model_validate(parse_json(request.get_data())).target
        except ValidationError as error:
            return as_json(responses.Error(error=problems_in(error)), 400)
        except (ValueError, RecursionError):
            return as_json(responses.Error(error="the body is not JSON"), 400)
        id = in_transaction(engine, refreshes.request, target, g.token_name)
        if id is None:
            return as_json(
                responses.Error(error="too many requests of this token wait to be read; try again later"), 429
            )
        bell.ring()
        waiting.until(lambda: any(refreshes.progress(engine, id)))  # after a failure, the next attempt takes too long
        found = refreshes.progress(engine, id)
        if not found.is_done:
            return as_json(responses.PendingRefresh(error=found.error), 202)
        response = _answer(target)
        response.headers["Cache-Control"] = "no-store"
        return response

    def _answer(target: refreshes.Target) -> Response:
        with read_transaction(engine) as tx:
            if missing := refreshes.unknown(tx, target):
                return as_json(responses.Error(error=f"{missing} is unknown to WorkOS and to the mirror"), 404)
            if target.kind != refreshes.ACCESS:
                state = refreshes.state_of(tx, target.kind, target.object_id)
                return as_json(responses.Refreshed(object=state))
        with session(engine) as opened:
            found = access_of(opened, target.user_id, target.object_id)
        return as_json(responses.Refreshed(access=responses.Access(**found._asdict())))
