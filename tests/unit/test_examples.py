"""The help of every command has examples, and they are valid."""

import shlex

import click
import pytest

from tests.support import commands
from worker.cli import main
from worker.cli.examples import EXAMPLES

COMMANDS = {" ".join(path): command for path, command in commands(main) if not isinstance(command, click.Group)}


def test_every_command_has_examples() -> None:
    assert sorted(EXAMPLES) == sorted(COMMANDS)


@pytest.mark.parametrize("path", EXAMPLES)
def test_examples_are_valid(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)  # where one asks for a confirmation
    command = COMMANDS[path]
    for arguments in EXAMPLES[path]:
        words = shlex.split(arguments.partition(" > ")[0])
        command.make_context(path, words)
        assert f"workos-sync {path} {arguments}".rstrip() in command.get_help(click.Context(command))
