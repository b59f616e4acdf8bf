"""A product that follows `changes` by id through all of it."""

import threading
import time

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from worker.errors import CursorGoneError
from worker.mirror.change_feed import changes_after

POLL_SECONDS = 0.05
PAGE_SIZE = 500


class Follower:
    """Begins at once; `seen` are the ids in the order in which it saw them."""

    def __init__(self, engine: Engine) -> None:
        self.seen: list[int] = []
        self.problem = ""
        self._engine = engine
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="follower", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Read a last time, then end."""
        self._over.set()
        self._thread.join()

    def _follow(self) -> None:
        while True:
            last = self._over.is_set()
            if self._read() < PAGE_SIZE and last:
                return
            time.sleep(POLL_SECONDS)

    def _read(self) -> int:
        try:
            found = changes_after(self._engine, self.seen[-1] if self.seen else 0, PAGE_SIZE)
        except DBAPIError:
            return 0  # the database is away
        except CursorGoneError as error:
            self.problem = str(error)
            return 0
        self.seen += [row["id"] for row in found]
        return len(found)
