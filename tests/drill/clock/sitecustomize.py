"""Python imports this when it starts, from the folder that PYTHONPATH names: the process gets its own clock.

The file that `WRONG_CLOCK` names holds the seconds that it is ahead, and is read every half second. Only the time of
day is wrong, as after a bad NTP answer; the monotonic clock is right.
"""

import os
import threading
import time
from datetime import timedelta
from pathlib import Path

import time_machine

POLL_SECONDS = 0.5


def follow(file: Path) -> None:
    """Keep the clock ahead by the seconds in the file."""
    ahead, travel = 0, None
    while True:
        wanted = int(file.read_text())
        if wanted != ahead:
            if travel is not None:
                travel.stop()
            travel = time_machine.travel(timedelta(seconds=wanted)) if wanted else None
            if travel is not None:
                travel.start()
            ahead = wanted
        time.sleep(POLL_SECONDS)


def start() -> None:
    """Follow in a thread."""
    threading.Thread(target=follow, args=(Path(os.environ["WRONG_CLOCK"]),), name="wrong-clock", daemon=True).start()


if "WRONG_CLOCK" in os.environ:
    start()
    os.register_at_fork(after_in_child=start)  # a fork has no threads
