"""No secret appears in the command line or the output of our processes."""

from collections.abc import Callable

import pytest

from tests.support.processes import Commands, command_line, eventually

pytestmark = pytest.mark.long

SECRETS = {
    "WORKOS_WEBHOOK_SECRETS": "whsec_unheard_of",
    "OPS_TOKENS": "ann:unheard-of-token-of-ann",
    "API_TOKENS": "unheard-of-token-of-the-api",
    "WEBHOOK_PATH_TOKEN": "unheard-of-path-token",
}


def test_no_secret_in_command_lines_or_output(
    commands: Commands, redis_url: str, make_database: Callable[[str], str]
) -> None:
    url = make_database("postgresql").replace("://postgres@", "://postgres:unheard-of-password@")
    settings = {"DATABASE_URL": url, "REDIS_URL": redis_url, "WORKER_PROCESSES": 1} | SECRETS
    commands.executed = True
    web, _ = commands.web(**settings)
    worker = commands.start("worker", **settings)
    eventually(lambda: worker.lanes() or worker.process.poll() is not None, 60)
    shown = [command_line(process) for command in (web, worker) for process in command.family()]
    assert worker.lanes(), worker.output()
    assert "unheard" not in repr(shown) and "unheard" not in web.output() + worker.output()
