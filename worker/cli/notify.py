"""`workos-sync notify`: notifications about conditions."""

from __future__ import annotations

import sys

import click

from worker.cli import output
from worker.cli.layout import Column, Fit
from worker.cli.shared import logging_settings
from worker.errors import ConfigurationError
from worker.lazy import lazy_imports

with lazy_imports():
    from worker.notify import send_test, targets


@click.group()
def notify() -> None:
    """Notify people and programs of conditions."""


@notify.command("test")
@output.listing(Column("target"), Column("outcome"), Column("error", fit=Fit.WRAP), empty="no targets")
def notify_test(out: output.Listing) -> None:
    """Send a test message to each target in NOTIFY.

    Exit code 1 if a target does not accept it.
    """
    settings = logging_settings()
    if not settings.notify:
        raise ConfigurationError("NOTIFY is not set; set it to slack://..., mailto://... or https://host/path")
    targets.require_usable(settings)
    rows = send_test.send_tests(settings)
    out.show(rows)
    sys.exit(1 if any(row["error"] for row in rows) else 0)
