"""Schemathesis checks that responses match the OpenAPI document and that no request causes a 500."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests.support import accept, apply_all, made, serving
from tests.support.actors import by
from webhooks.app import create_app
from worker.bootstrap import Services
from worker.inbox.selection import Selection
from worker.repair import replay as replays
from worker.repair.resync import resync

pytestmark = pytest.mark.long

TOKEN = "reader-token-0123456789"
MEANT = {
    "/api/v1/status": [not_a_server_error],  # 503 while the mirror cannot be trusted, as here
    "/api/v1/access": [not_a_server_error, positive_data_acceptance],  # 503 as above, 400 for a bound of a second
    "/api/v1/refresh": [positive_data_acceptance],  # 403: this token only reads
    "/api/v1/members": [positive_data_acceptance],  # 410 for a time before the mirror was filled, 400 for a future one
    "/api/v1/changes": [positive_data_acceptance],  # 410 for a cursor that was never handed out
}


@pytest.fixture
def document(local: Callable[..., Services]) -> Iterator[Any]:
    """The OpenAPI document of a running server with sample data."""
    services = local(api_tokens=TOKEN)
    app = create_app(services)
    endpoint = app.test_client()
    accept(endpoint, made("organization.created"), made("user.created"), made("organization_membership.created"))
    accept(endpoint, made("invitation.created"), made("connection.activated"))
    accept(endpoint, made("organization_domain.verified", state="verified"), made("user.updated") | {"data": None})
    apply_all(services.engine)
    replays.start(services.engine, Selection(failed=True), by("ann"))
    resync.start(services.engine, by("ann"))
    with serving(app) as url:
        described = endpoint.get("/api/v1/openapi.json").json
        assert described is not None
        del described["security"]  # that a token is needed is shown elsewhere: here every call has one
        schema = schemathesis.openapi.from_dict(described)
        schema.config.update(base_url=url)
        yield schema


# Not through schemathesis's own pytest plugin, which does not work with pytest 9.
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_every_response_matches_openapi_document(document: Any, mode: GenerationMode) -> None:
    tried: dict[str, int] = {}
    for operation in (result.ok() for result in document.get_all_operations()):

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(max_examples=8, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        def holds(case: Any) -> None:
            if "wait" in (case.query or {}):  # waiting is shown elsewhere
                if case.operation.path.endswith("/access"):
                    del case.query["wait"]
                elif str(case.query["wait"]).isdigit():
                    case.query["wait"] = 0
            excluded = MEANT.get(case.operation.path, [])
            case.call_and_validate(headers={"Authorization": f"Bearer {TOKEN}"}, excluded_checks=excluded)
            tried[case.operation.path] = tried.get(case.operation.path, 0) + 1

        if mode is GenerationMode.NEGATIVE and not list(operation.query):
            continue  # cannot be asked for wrongly
        holds()
    assert len(tried) == (19 if mode is GenerationMode.POSITIVE else 12), tried
