"""Helpers for the repairs: settings, and the state of the mirror and its runs."""

from typing import Any

from sqlalchemy import Engine

from models.tables import MirrorState, Run, Task
from models.views import mirror_status
from tests.support import JSON, rows
from tests.support.resync import CLIENT_ID
from worker.settings import Settings


def settings(**given: Any) -> Settings:
    named: dict[str, Any] = {"workos_api_key": "sk_test", "workos_client_id": CLIENT_ID, "catch_up_lag_seconds": 3.0}
    return Settings(_env_file=None, **(named | given))


def status(engine: Engine) -> JSON:
    return rows(engine, mirror_status)[0]


def mirror(engine: Engine) -> JSON:
    return rows(engine, MirrorState)[0]


def runs(engine: Engine, task: Task) -> list[JSON]:
    return [row for row in rows(engine, Run) if row["task"] == task]
