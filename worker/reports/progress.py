"""Progress of a run, read from the database, and a progress bar for the terminal."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from sqlalchemy import Engine, func, select

from models.database import read_transaction
from models.tables import Listing, ListingState, Read, Run, Task

REFRESH_SECONDS = 0.25


@contextmanager
def progress(engine: Engine, run_id: str) -> Iterator[None]:
    """Show a progress bar until the block ends; nothing if standard error is not a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    finished = threading.Event()
    bar = threading.Thread(target=_show_bar, args=(engine, run_id, finished), daemon=True, name="progress")
    bar.start()
    try:
        yield
    finally:
        finished.set()
        bar.join()


def _show_bar(engine: Engine, run_id: str, finished: threading.Event) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("list", total=None, rate="")
        while not finished.wait(REFRESH_SECONDS):
            phase, done, total = how_far(engine, run_id)
            speed = bar.tasks[0].speed
            bar.update(task, description=phase, completed=done, total=total, rate=f"{speed or 0:.0f}/s")


def how_far(engine: Engine, run_id: str) -> tuple[str, int, int]:
    """Return the phase of a run, how many steps are done, and the total.

    The steps of a replay are events; those of a resync are its listings and its outstanding reads.
    """
    closed = func.count().filter(Listing.state != ListingState.OPEN)
    listings = select(closed, func.count()).where(Listing.run_id == run_id)
    outstanding = select(func.count()).where(Read.run_id == run_id)
    with read_transaction(engine) as tx:
        run = tx.execute(select(Run.task, Run.phase, Run.done, Run.skipped, Run.total).where(Run.id == run_id)).one()
        if run.task == Task.REPLAY:
            return "replay", run.done + run.skipped, run.total or 0
        done, total = tx.execute(listings).one()
        reads = tx.execute(outstanding).scalar_one()
    return run.phase, done, total + reads
