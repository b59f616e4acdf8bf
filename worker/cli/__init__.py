"""The command line: `workos-sync …`. Exit code 0: all is well, 1: something is wrong, 2: usage or configuration."""

from importlib import import_module
from typing import Any

import click
from redis.exceptions import RedisError
from sqlalchemy.exc import DBAPIError

from worker.cli.shared import fail
from worker.errors import ConfigurationError, WorkOSUnavailableError
from worker.private_files import keep_files_private

PLACES = {
    **dict.fromkeys(["web", "worker", "clock", "demo"], "serve"),
    **dict.fromkeys(["migrate", "doctor", "register"], "setup"),
    **dict.fromkeys(["resync", "catch-up", "runs", "forget"], "repair"),
    **dict.fromkeys(["events", "replay"], "inbox"),
    **dict.fromkeys(["explain", "members", "workspaces", "status"], "reports"),
    "auto-join": "auto_join",
    "hooks": "hooks",
}
"""Command → its module here, loaded when the command is run: who starts a worker need not wait for the others."""


class Commands(click.Group):
    """A group whose commands end wrong configuration and a database away with one line and exit code 2."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the names of all commands."""
        return sorted(PLACES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """Return a command by name, if there is such a one."""
        if cmd_name not in PLACES:
            return None
        module = import_module(f"worker.cli.{PLACES[cmd_name]}")
        return next(c for c in vars(module).values() if isinstance(c, click.Command) and c.name == cmd_name)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except ConfigurationError as error:
            fail(str(error))
        except WorkOSUnavailableError as error:
            fail(f"WorkOS did not answer: {error}")
        except RedisError as error:
            fail(f"REDIS_URL: Redis failed: {type(error).__name__}")
        except DBAPIError as error:
            fail(f"DATABASE_URL: the database failed: {error.orig.__class__.__name__}")


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="workos-sync")
def main() -> None:
    """Keep a product's own database equal to WorkOS: workspaces, members, roles and auto-join domains.

    Settings come from the environment and from `.env`; the README lists them.
    """
    keep_files_private()
