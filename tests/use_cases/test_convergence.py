"""Random histories of lost, late and duplicate events, repairs and replays converge on WorkOS.

`CONVERGENCE_EXAMPLES=2000 pytest tests/use_cases/test_convergence.py` for a long run. Hypothesis reports a failure as
the shortest history that it finds.
"""

import os

import pytest
from flask.testing import FlaskClient
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from redis import Redis
from sqlalchemy import Engine

from tests.support.histories import History
from worker.repair.resync import resync
from worker.workos_api import client as workos

pytestmark = pytest.mark.long

EXAMPLES = int(os.environ.get("CONVERGENCE_EXAMPLES", "12"))
STEPS = 30
SETTINGS = settings(
    max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.timeout(0)
def test_every_history_converges(
    both_engines: Engine, endpoint: FlaskClient, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resync, "CONCURRENT_CALLS", 1)  # so that a history is always the same
    monkeypatch.setattr(workos, "PAGE", 5)  # so that so small a world has pages
    run_state_machine_as_test(lambda: History(both_engines, endpoint, redis), settings=SETTINGS)  # type: ignore[arg-type]
