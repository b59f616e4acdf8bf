"""Run commands in this process."""

import json
from typing import Any

from click.testing import CliRunner, Result

from worker.cli import main


def run(*arguments: str, exit_code: int = 0) -> Result:
    """Run `workos-sync` with these arguments; it must exit with `exit_code`."""
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == exit_code, (result.output, result.exception)
    return result


def report(*arguments: str, exit_code: int = 0) -> Any:
    """Run a command with --json; returns the decoded output."""
    return json.loads(run(*arguments, "--json", exit_code=exit_code).stdout)
