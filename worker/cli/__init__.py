"""The command line, `workos-sync`.

Exit codes: 0, all is well; 1, something is wrong or could not be done; 2, wrong usage or configuration.
"""

import atexit
import gc
import io
import sys
from importlib import import_module
from typing import NoReturn

import click

from worker.cli.examples import add_examples
from worker.errors import unexpected
from worker.lazy import lazy_imports
from worker.private_files import keep_files_private

with lazy_imports():
    from worker.cli import failures

MODULES = {
    **dict.fromkeys(["up", "web", "worker", "clock", "demo"], "serve"),
    "alive": "alive",
    **dict.fromkeys(["migrate", "doctor"], "setup"),
    **dict.fromkeys(["register", "endpoints"], "endpoints"),
    "config": "config",
    **dict.fromkeys(["resync", "catch-up", "forget"], "repair"),
    **dict.fromkeys(["events", "replay"], "inbox"),
    **dict.fromkeys(["explain", "members", "workspaces"], "reports"),
    "audit": "audit",
    "auto-join": "auto_join",
    "hooks": "hooks",
    "notify": "notify",
    "plan": "plan",
    "review": "review",
    "runs": "runs",
    "sandbox": "sandbox",
    "seats": "seats",
    "send": "send",
    "status": "status",
}
"""Command name → module in this package.

To keep start-up fast, a module is imported only when its command runs, and imports what others need with
`lazy_imports`.
"""
GC_THRESHOLD = 200_000
"""Number of new objects after which a command collects garbage. Imports create 100,000, almost none of it garbage."""


class Commands(click.Group):
    """A group that turns every error of a command into one line on standard error and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the names of all commands."""
        return sorted(MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """Return the command with this name; None if there is none."""
        if cmd_name not in MODULES:
            return None
        module = import_module(f"worker.cli.{MODULES[cmd_name]}")
        # Not isinstance, which would load the lazy modules.
        commands: list[click.Command] = [c for c in vars(module).values() if issubclass(type(c), click.Command)]
        found = next(command for command in commands if command.name == cmd_name)
        add_examples(found, cmd_name)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that `args` name; suggest similar names if there is none."""
        try:
            return super().resolve_command(ctx, args)
        except click.NoSuchCommand as error:
            raise click.NoSuchCommand(error.command_name, possibilities=MODULES, ctx=ctx) from None

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Refuse arguments that neither a database nor a terminal can represent."""
        if any("\ud800" <= character <= "\udfff" for argument in args for character in argument):
            raise click.UsageError("an argument is not valid text in this terminal's encoding (see LC_ALL)", ctx)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise  # click's own; it also ends quietly when the reader of a pipe has gone
        except Exception as error:
            if line := failures.expected(error):
                _fail(*line)
            if ctx.params["traceback"]:
                raise
            problem = f"{ctx.invoked_subcommand} failed unexpectedly: {unexpected(error)}"
            _fail(f"{problem}; to see the traceback, run workos-sync --traceback {ctx.invoked_subcommand} ...", 1)


def _without_color(context: click.Context, option: click.Parameter, given: bool) -> None:
    """Print no colors with the option, or if NO_COLOR is set to anything (https://no-color.org)."""
    if given or option.resolve_envvar_value(context):
        context.color = False


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="workos-sync")
@click.option("--traceback", is_flag=True, help="Print the traceback of an unexpected error.")
@click.option(
    "--no-color",
    is_flag=True,
    type=click.UNPROCESSED,
    envvar="NO_COLOR",
    callback=_without_color,
    expose_value=False,
    help="Print no colors. Setting NO_COLOR does the same.",
)
def main(traceback: bool) -> None:
    """Mirror the WorkOS data that decides access into your own database.

    That is organizations, memberships, users, roles, permissions, invitations, domains and connections. A workspace is
    a WorkOS organization, as your product sees it: the two words mean the same. Settings are read from environment
    variables and from `.env`. docs/reference.md lists them.
    """
    keep_files_private()
    _accept_all_characters()
    _collect_less()


def _collect_less() -> None:
    """Collect garbage less often in short commands, which saves a third of their CPU time; servers are not affected."""
    if MODULES.get(click.get_current_context().invoked_subcommand or "") != "serve":
        gc.set_threshold(GC_THRESHOLD)
    atexit.register(gc.freeze)  # Python's last collection, when the memory is returned anyway


def _accept_all_characters() -> None:
    """Print a replacement for each character that the encoding of standard output or error lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _fail(message: str, exit_code: int) -> NoReturn:
    click.echo(f"workos-sync: {message}", err=True)
    sys.exit(exit_code)
