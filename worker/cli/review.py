"""`workos-sync review`: the access review."""

import shutil
import sys
import tempfile
from datetime import datetime

import click

from worker.cli import options
from worker.cli.shared import actor, migrated_engine, organization_id
from worker.lazy import lazy_imports

with lazy_imports():
    from worker.reports import review as reviews


@click.command()
@options.organization
@options.time("--at", f"Review who had access at {options.THIS_TIME}. Default: now.")
@options.time("--since", f"Compare with {options.THIS_TIME}. Default: the time of the previous review.")
@click.option("--format", "form", type=click.Choice(("csv", "json", "html")), default="csv", show_default=True)
@options.reason
def review(
    organization: str | None, at: datetime | None, since: datetime | None, form: str, reason: str | None
) -> None:
    """Write an access review: who has access, why, and what changed since the previous review.

    The last line contains the SHA-256 of the lines above it. The audit records who made the review, and the hash.
    """
    engine = migrated_engine()
    workspace = organization_id(engine, organization)
    # First to a file: a slow reader of standard output must not hold the transaction open.
    with tempfile.TemporaryFile() as file:
        reviews.write_review(engine, file, form, actor(reason), organization_id=workspace, at=at, since=since)
        file.seek(0)
        shutil.copyfileobj(file, sys.stdout.buffer)
