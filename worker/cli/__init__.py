"""The command line: `workos-sync …`. Exit code 0: all is well, 1: something is wrong, 2: usage or configuration."""

from typing import Any

import click
from redis.exceptions import RedisError
from sqlalchemy.exc import DBAPIError

from worker.cli import hooking, inbox, joining, look, repair, serve, setup
from worker.cli.shared import fail
from worker.directory.client import UnreadableError
from worker.errors import ConfigurationError


class Commands(click.Group):
    """A group whose commands end wrong configuration and a database away with one line and exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except ConfigurationError as error:
            fail(str(error))
        except UnreadableError as error:
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


for command in (
    *(serve.migrate, serve.web, serve.worker, serve.clock, serve.demo),
    *(repair.resync, repair.runs, repair.catch_up_command, repair.forget_command),
    *(inbox.events, inbox.replay_command),
    *(joining.auto_join, hooking.hooks),
    *(setup.doctor, setup.register),
    *(look.explain_command, look.members, look.workspaces, look.status),
):
    main.add_command(command)
