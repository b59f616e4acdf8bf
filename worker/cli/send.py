"""`workos-sync send`: a test event."""

import sys

import click

from worker.cli import options
from worker.cli.shared import logging_settings, migrated_engine
from worker.lazy import lazy_imports

with lazy_imports():
    from worker import send_test
    from worker.cli import announcement, output


@click.command()
@click.argument("type")
@click.option("--url", metavar="URL", help="Where web listens, without a path. Default: BIND and PORT on this machine.")
@options.as_json
def send(type: str, url: str | None, as_json: bool) -> None:
    """Post a signed test event to web, and show whether it arrives and is processed.

    The event is of the type workos_sync.test, which changes nothing in the mirror and does not count as a delivery of
    WorkOS. TYPE chooses the sample in its data, for example user.updated. Exit code 1 if it is not processed.
    """
    settings = logging_settings("workos_webhook_secrets")
    base = url.rstrip("/") if url else announcement.url_of(settings.bind, settings.port)
    sent = send_test.send_test(migrated_engine(), settings, type, base)
    if as_json:
        output.json(sent._asdict())
    else:
        for line in sent.lines():
            click.echo(line)
    sys.exit(1 if sent.problem else 0)
