"""`workos-sync sandbox`: an offline WorkOS."""

import importlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from worker.cli.shared import until_stopped
from worker.errors import ConfigurationError
from worker.lazy import lazy_imports

with lazy_imports():
    from worker.cli import layout, output

if TYPE_CHECKING:
    from worker.sandbox import Endpoint, Sandbox


@click.command()
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8010, show_default=True, help="Port; 0 chooses a free one."
)
@click.option("--bind", metavar="ADDRESS", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--seed", type=click.Path(path_type=Path), metavar="FILE", help="JSON file with its initial contents.")
@click.option("--webhook", "webhooks", metavar="URL", multiple=True, help="Send webhooks to this URL. May be repeated.")
@click.option("--secret", metavar="SECRET", help="Sign webhooks with this secret. Default: a random one.")
@click.option("--random-seed", type=int, default=0, show_default=True, help="Seed of all random choices.")
def sandbox(
    port: int, bind: str, seed: Path | None, webhooks: tuple[str, ...], secret: str | None, random_seed: int
) -> None:
    """Run an offline WorkOS for development and tests, with invented data.

    It serves WorkOS's API and events API, sends signed webhooks, and injects faults on request. Its data is lost when
    it stops. docs/development.md describes seed files and the HTTP endpoints that control the sandbox. If standard
    output is not a terminal, it prints the settings that point to it as one line of JSON.
    """
    if secret is not None and not (secret and webhooks):
        raise click.UsageError("--secret signs webhooks: give a text, and --webhook URL")
    try:
        made: Sandbox = importlib.import_module("worker.sandbox").Sandbox(seed=random_seed, host=bind, port=port)
    except ImportError as error:  # the extra is not installed
        raise ConfigurationError(str(error)) from None
    try:
        if seed is not None:
            importlib.import_module("worker.sandbox.seed").plant(made, seed)
        endpoints = [made.add_endpoint(url, secret) for url in webhooks]
    except ValueError as error:
        raise ConfigurationError(str(error)) from None
    with until_stopped() as stop:
        try:
            made.start()
        except OSError as error:
            why = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
            raise ConfigurationError(f"cannot listen at {bind}, port {port}: {why}; choose --bind or --port") from None
        try:
            if sys.stdout.isatty():
                text = "\n".join(layout.wrap("\n".join(_announced(made, endpoints)), output.width(), whole=True))
            else:
                text = json.dumps(_settings(made, endpoints))
            click.echo(text)
            stop.wait()
        finally:
            made.stop()


def _settings(made: "Sandbox", endpoints: list["Endpoint"]) -> dict[str, str]:
    """Return the settings of workos-sync with which it mirrors this sandbox."""
    secrets = ",".join(dict.fromkeys(endpoint.secret for endpoint in endpoints))
    return made.settings | ({"WORKOS_WEBHOOK_SECRETS": secrets} if secrets else {})


def _announced(made: "Sandbox", endpoints: list["Endpoint"]) -> Iterator[str]:
    world = made.world
    yield "workos-sync sandbox: an offline WorkOS with invented data"
    yield f"  API: {made.base_url}"
    yield f"  Control: {made.base_url}/sandbox/ (see docs/development.md); it asks for no key"
    for endpoint in endpoints:
        yield f"  Webhooks: {endpoint.url}"
    if not endpoints:
        yield "  Webhooks: none; --webhook URL sends them"
    contents = {"organization": world.organizations, "user": world.users, "membership": world.memberships}
    yield f"  Contains: {', '.join(output.count(len(table), name) for name, table in contents.items())}"
    processes = "web, worker and clock" if endpoints else "worker and clock"
    yield f"Next: put these settings into .env, run workos-sync migrate, then workos-sync {processes}"
    yield from (f"  {name}={value}" for name, value in _settings(made, endpoints).items())
    yield (
        "When it stops, it loses all objects, events and endpoints. Started again, it has the same key, client id "
        "and secrets, and new ids: empty the mirror then (delete .workos-sync/)."
    )
    yield "Ctrl-C stops it."
