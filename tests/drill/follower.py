"""A product that follows `changes` by id through all of it."""

import threading
import time

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from worker.errors import CursorGoneError
from worker.mirror.change_feed import changes_after

LOOK_EVERY_SECONDS = 0.05
MOST = 500


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
        """Look once more, then end."""
        self._over.set()
        self._thread.join()

    def _follow(self) -> None:
        while True:
            last = self._over.is_set()
            if self._look() < MOST and last:
                return
            time.sleep(LOOK_EVERY_SECONDS)

    def _look(self) -> int:
        try:
            found = changes_after(self._engine, self.seen[-1] if self.seen else 0, MOST)
        except DBAPIError:
            return 0  # the database is away
        except CursorGoneError as error:
            self.problem = str(error)
            return 0
        self.seen += [row["id"] for row in found]
        return len(found)
