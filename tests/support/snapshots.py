"""Parse sample events as the worker does."""

import json
from typing import Any

import pytest

from tests.support import JSON, made
from worker.decision.roles import DEFAULT_ROLE_MAP
from worker.errors import PayloadError
from worker.kinds import SUBSCRIBED, Snapshot, read_event

ROLES = DEFAULT_ROLE_MAP | {"owner": "admin"}
DELETES = [type for type in SUBSCRIBED if type.endswith(".deleted")]


def read(event: JSON) -> Snapshot:
    _, snapshot = read_event(event["id"], event["event"], json.dumps(event).encode(), ROLES)
    assert snapshot is not None
    return snapshot


def content(type: str, **data: Any) -> Any:
    return read(made(type, **data)).state.content


def refused(event: JSON) -> PayloadError:
    with pytest.raises(PayloadError) as caught:
        read(event)
    return caught.value
