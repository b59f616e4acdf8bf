"""Run commands in this process."""

import contextlib
import io
import json
import os
from typing import Any
from unittest.mock import patch

import pytest
from click.testing import CliRunner, Result

from worker.cli import main


def run(*arguments: str, exit_code: int | None = 0) -> Result:
    """Run `workos-sync` with these arguments; it must exit with `exit_code`; None is any."""
    result = CliRunner().invoke(main, arguments)
    assert exit_code in (None, result.exit_code), (result.output, result.exception)
    return result


def report(*arguments: str, exit_code: int = 0) -> Any:
    """Run a command with --json; returns the decoded output."""
    return json.loads(run(*arguments, "--json", exit_code=exit_code).stdout)


class Terminal(io.StringIO):
    """A terminal that keeps what is printed."""

    def isatty(self) -> bool:
        return True


def on_terminal(*arguments: str, columns: int = 250, exit_code: int | None = 0, color: bool = False) -> str:
    """Run a command whose standard output is a terminal; returns what it shows there. None is any exit code."""
    terminal = Terminal()
    environment = {"COLUMNS": str(columns), "NO_COLOR": "" if color else "1"}
    with patch.dict(os.environ, environment), contextlib.redirect_stdout(terminal), pytest.raises(SystemExit) as ended:
        main.main(list(arguments), prog_name="workos-sync")
    assert exit_code in (None, ended.value.code), (terminal.getvalue(), ended.value.code)
    return terminal.getvalue()
