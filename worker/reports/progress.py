"""Progress of a run, read from the database, and of a catch-up; on a terminal, with rate and time remaining."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from sqlalchemy import Engine, func, select

from models.database import read_transaction
from models.tables import Listing, ListingState, Read, Run, Task
from worker.decision.payload import parse_time
from worker.workos_api.client import Page

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


@contextmanager
def reading_events(start: datetime | None) -> Iterator[Callable[[Page], None]]:
    """Yield a function that takes each page of events that was read, and shows their number and rate.

    With `start`, the time from which they are read, it also shows the time remaining. It shows nothing if standard
    error is not a terminal.
    """
    if not sys.stderr.isatty():
        yield lambda _page: None
        return
    began, number = time.monotonic(), 0
    columns = (TextColumn("{task.completed:.0f} events read"), TextColumn("{task.fields[speed]}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("events", total=None, speed="")

        def show(page: Page) -> None:
            nonlocal number
            number += len(page.items)
            seconds = time.monotonic() - began
            speed = f"{number / max(seconds, 0.001):.0f}/s"
            last = page.items[-1] if page.items else None
            at = parse_time(last.get("created_at")) if isinstance(last, dict) else None
            if start is not None and at is not None and at > start:
                part = (at - start) / max(page.read_at - start, at - start)
                speed += f", about {seconds / part - seconds:.0f} s remaining"
            bar.update(task, completed=number, speed=speed)

        yield show


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
