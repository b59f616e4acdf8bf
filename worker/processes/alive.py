"""Records that the processes of a command run, so that `workos-sync alive` on the same machine can check it.

Every few seconds, a thread of each process writes its pid and the time into a file that the processes share. So a
process that waits for an unavailable database or Redis counts as alive, and one that is dead or frozen does not.
"""

import mmap
import os
import threading
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import structlog

from worker.errors import OperatorError
from worker.private_files import HOME

log = structlog.get_logger()

BEAT_SECONDS = 2.0
"""Interval at which a process writes the time."""
STALE_SECONDS = 20.0
"""A killed or frozen process counts as alive for this long: longer than a loaded machine delays a thread."""
NOT_EXPECTED = float("inf")
"""The time of a process that has ended and will be started again after a pause."""


def file_of(command: str) -> Path:
    """Return the file of the newest process that runs `command` in this working directory."""
    with suppress(OSError):  # containers that share the directory have the same pids
        return HOME.resolve() / f"{command}.{Path('/proc/self/ns/pid').stat().st_ino}.alive"
    return HOME.resolve() / f"{command}.alive"


class Beats:
    """The times of a command's processes, in memory that is shared with the processes that it forks.

    Each has a place: its pid and its time, by the monotonic clock, which a change of the time of day does not affect.
    The first place is the command's own.
    """

    def __init__(self, file: Path | None, processes: int = 0) -> None:
        """Create `file`, if given, with places for `processes` forked processes.

        If the file cannot be created, as in a read-only directory, log a warning and continue without it.
        """
        start = array("d", [os.getpid(), time.monotonic(), *[0.0, NOT_EXPECTED] * processes]).tobytes()
        self._places = memoryview(bytearray(start)).cast("d")
        if file is None:
            return
        new = file.with_suffix(f".{os.getpid()}")
        try:
            file.parent.mkdir(exist_ok=True)
            new.write_bytes(start)
            with new.open("r+b") as opened:
                self._places = memoryview(mmap.mmap(opened.fileno(), 0)).cast("d")
            new.replace(file)  # whole, because `alive` may read at any time
        except OSError as error:
            log.warning("alive_unavailable", file=str(file), error=error.strerror)

    def beat(self, place: int = 0) -> None:
        """Record that this process runs."""
        self._places[2 * place], self._places[2 * place + 1] = os.getpid(), time.monotonic()

    def expect(self, place: int, *, running: bool) -> None:
        """Record that a forked process has just started, or has ended."""
        self._places[2 * place + 1] = time.monotonic() if running else NOT_EXPECTED

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Record from a thread, until the block ends, that this process runs."""
        over = threading.Event()

        def run() -> None:
            while not over.wait(BEAT_SECONDS):
                self.beat()

        thread = threading.Thread(target=run, daemon=True, name="alive")
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def remove(file: Path) -> None:
    """Remove the file of this process, unless a newer one has made its own."""
    with suppress(OSError, ValueError):
        if array("d", file.read_bytes())[0] == os.getpid():
            file.unlink()


def silent_processes(file: Path) -> list[tuple[int, float]] | None:
    """Return the pid of each dead or frozen process of a command, and the seconds since it last ran.

    Return None if there is no `file`: the command is not running here, or is only just starting.

    Raises:
        OperatorError: the file cannot be read.
    """
    try:
        places = array("d", file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise OperatorError(f"{file} cannot be read ({type(error).__name__}); restart the command") from error
    now = time.monotonic()
    ages = [(int(pid), now - at) for pid, at in zip(places[::2], places[1::2], strict=True) if at != NOT_EXPECTED]
    # A time in the future was written before this machine started.
    return [(pid, age) for pid, age in ages if not -1 <= age <= STALE_SECONDS]
