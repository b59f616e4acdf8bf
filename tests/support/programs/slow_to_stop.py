"""A supervisor with a process that takes long to stop. Argument: the file in which they note that they run."""

import os
import sys
import time
from pathlib import Path

from worker.cli.shared import until_stopped
from worker.processes.alive import STALE_SECONDS
from worker.processes.supervisor import supervise


def main(file: str) -> None:
    """Print the pid of the process, and supervise it until SIGTERM."""
    with until_stopped() as stop:
        supervise([_stop_slowly], stop, print, beats_file=Path(file))


def _stop_slowly() -> None:
    with until_stopped() as stop:
        print(os.getpid(), flush=True)
        stop.wait()
    time.sleep(STALE_SECONDS + 5)


if __name__ == "__main__":
    main(*sys.argv[1:])
