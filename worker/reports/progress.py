"""How far a run is, read from the database, and a live bar of it."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from sqlalchemy import Engine, func, select

from models.database import read_transaction
from models.tables import Listing, Read, Run

REFRESH_SECONDS = 0.25


@contextmanager
def progress(engine: Engine, run_id: str) -> Iterator[None]:
    """Show how far a run is, until the block ends; nothing where standard error is no terminal."""
    if not sys.stderr.isatty():
        yield
        return
    over = threading.Event()
    painter = threading.Thread(target=_paint, args=(engine, run_id, over), daemon=True, name="progress")
    painter.start()
    try:
        yield
    finally:
        over.set()
        painter.join()


def _paint(engine: Engine, run_id: str, over: threading.Event) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("list", total=None, rate="")
        while not over.wait(REFRESH_SECONDS):
            phase, done, total = how_far(engine, run_id)
            speed = bar.tasks[0].speed
            bar.update(task, description=phase, completed=done, total=total, rate=f"{speed or 0:.0f}/s")


def how_far(engine: Engine, run_id: str) -> tuple[str, int, int]:
    """Return what a run does, how much of it is done, and of how much in all.

    A replay counts events; a resync its listings and, after them, the reads that wait.
    """
    mine = select(func.count()).select_from(Listing).where(Listing.run_id == run_id)
    waiting = select(func.count()).select_from(Read).where(Read.run_id == run_id)
    with read_transaction(engine) as tx:
        run = tx.execute(select(Run.phase, Run.done, Run.skipped, Run.total).where(Run.id == run_id)).one()
        if run.total is not None:
            return "replay", run.done + run.skipped, run.total
        total = tx.execute(mine).scalar_one()
        open_ones = tx.execute(mine.where(Listing.state == "open")).scalar_one()
        reads = tx.execute(waiting).scalar_one()
    return run.phase, total - open_ones, total + reads
