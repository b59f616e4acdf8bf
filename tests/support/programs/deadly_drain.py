"""A process that drains while one event is deadly. Arguments: URL ID ATTEMPTS."""

import os
import sys

from models.database import open_engine
from worker.decision.payload import Envelope, Fields
from worker.inbox.drain import Drain, DrainLimits
from worker.kinds import READERS, Kind, RoleMap, Snapshot
from worker.logs import configure


def drain_with_poison(url: str, poison: str, max_attempts: str) -> None:
    """For each line on stdin drain in another process, in which the event `poison` is deadly; print how it ended.

    The first line is for this process, which must find the inbox empty. The second process continues its drain.
    """
    configure("console")  # to stderr: stdout is for the answers
    kind, reader = READERS["user.updated"]

    def deadly(kind: Kind, data: Fields, envelope: Envelope, roles: RoleMap) -> Snapshot:
        if envelope.id == poison:
            os._exit(137)
        return reader(kind, data, envelope, roles)

    READERS["user.updated"] = (kind, deadly)
    limits = DrainLimits(batch_size=50, max_attempts=int(max_attempts))
    engine = open_engine(url)
    drain = Drain(engine, limits)
    sys.stdin.readline()
    print(int(not drain()), flush=True)
    engine.dispose()
    for _ in sys.stdin:
        if (child := os.fork()) == 0:
            drain()
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        drain = Drain(engine, limits)


if __name__ == "__main__":
    drain_with_poison(*sys.argv[1:])
