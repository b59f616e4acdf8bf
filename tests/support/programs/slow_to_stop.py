"""A supervisor with a process that takes long to stop. Argument: the file in which they note that they run."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

from worker.processes.alive import STALE_SECONDS
from worker.processes.supervisor import supervise


def main(file: str) -> None:
    """Print the pid of the process, and supervise it until SIGTERM."""
    supervise([_stop_slowly], _until_stopped(), print, beats_file=Path(file))


def _stop_slowly() -> None:
    stop = _until_stopped()
    print(os.getpid(), flush=True)
    stop.wait()
    time.sleep(STALE_SECONDS + 5)


def _until_stopped() -> threading.Event:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    return stop


if __name__ == "__main__":
    main(*sys.argv[1:])
