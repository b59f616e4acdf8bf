"""A process that follows for a hook and is killed while it calls the target. Arguments: URL HOOK."""

import os
import signal
import sys

from models.database import open_engine
from tests.support import JSON
from worker.hooks.follow import follow
from worker.logs import configure


def die(_: JSON) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    configure("console")
    url, hook = sys.argv[1:]
    follow(open_engine(url), hook, die, 3)
