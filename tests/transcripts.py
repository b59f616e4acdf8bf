"""Prints what each command prints, on a filled database: `python -m tests.transcripts [--width 60] [COMMAND...]`.

Without a width, each command runs at 60, 80 and 120 columns, then piped, and then with --json.
"""

import os
import tempfile
from collections.abc import Iterator

import click
from click.testing import CliRunner

from models.database import open_engine
from models.migrate import upgrade
from tests.support.cli import on_terminal
from tests.support.filled import fill
from worker import logs
from worker.cli import main

WIDTHS = (60, 80, 120)
COMMANDS = (
    "status",
    "doctor",
    "config",
    "workspaces",
    "workspaces --without-admin",
    "members {organization}",
    "members {organization} --at 0s",
    "members --since 1h",
    "explain {email}",
    "explain {organization}",
    "events list --limit 30",
    "events list --status failed --wide",
    "events list --type nonsense",
    "events show {event}",
    "events show {failed}",
    "events failures",
    "replay --failed --dry-run",
    "runs list",
    "runs show {run}",
    "auto-join domains",
    "auto-join missing",
    "auto-join joins",
    "hooks list",
    "hooks failed",
    "plan --set ROLE_MAP=member=admin",
    "audit list",
)
"""The commands that report something; `{organization}` and other fields are ids in the database."""


def transcript(line: str, widths: tuple[int, ...]) -> Iterator[str]:
    """Yield what a command prints on terminals of these widths, piped, and as JSON."""
    for width in widths:
        yield f"$ workos-sync {line}{'':10}# {width} columns"
        yield on_terminal(*line.split(), columns=width, exit_code=None)
    yield f"$ workos-sync {line} | cat"
    yield CliRunner().invoke(main, line.split()).output
    yield f"$ workos-sync {line} --json"
    yield CliRunner().invoke(main, [*line.split(), "--json"]).stdout


@click.command()
@click.option("--width", "widths", type=int, multiple=True, default=WIDTHS, show_default=True)
@click.argument("chosen", nargs=-1, metavar="[COMMAND]...")
def print_transcripts(widths: tuple[int, ...], chosen: tuple[str, ...]) -> None:
    """Print the transcripts of all commands, or of those whose words begin with COMMAND."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ |= {"DATABASE_URL": f"sqlite:///{folder}/mirror.db", "REDIS_URL": "redis://127.0.0.1:1/0"}
        logs.configure("json")
        engine = open_engine(os.environ["DATABASE_URL"])
        upgrade(engine)
        ids = fill(engine)
        engine.dispose()
        for line in COMMANDS:
            if not chosen or line.startswith(" ".join(chosen)):
                click.echo("\n".join(transcript(line.format(**ids), widths)))


if __name__ == "__main__":
    print_transcripts()
