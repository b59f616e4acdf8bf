"""`workos-sync review`: the access review."""

import shutil
import sys
import tempfile
from datetime import datetime

import click

from worker.cli import options
from worker.cli.shared import actor, migrated_engine
from worker.reports.review import FORMATS, write_review


@click.command()
@click.option("--organization", "organization_id", metavar="ID", help="Only this workspace.")
@options.time("--at", f"Who had access at {options.THIS_TIME}. Default: now.")
@options.time("--since", f"Compare with {options.THIS_TIME}. Default: the time of the previous review.")
@click.option("--format", "form", type=click.Choice(list(FORMATS)), default="csv", show_default=True)
@options.reason
def review(
    organization_id: str | None, at: datetime | None, since: datetime | None, form: str, reason: str | None
) -> None:
    """Write an access review: who has access, why, and what changed since the previous review.

    The last line contains the SHA-256 of the lines above it. The audit records who made the review, and the hash.
    """
    engine = migrated_engine()
    # First to a file: a slow reader of standard output must not hold the transaction open.
    with tempfile.TemporaryFile() as file:
        write_review(engine, file, form, actor(reason), organization_id=organization_id, at=at, since=since)
        file.seek(0)
        shutil.copyfileobj(file, sys.stdout.buffer)
