"""Writers for group commits in tests."""

import threading
from collections.abc import Sequence


class Writer:
    """Records the groups that are written; blocks each write until `go_on` is set."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.threads: list[str] = []
        self.begun, self.go_on = threading.Event(), threading.Event()

    def __call__(self, items: list[int]) -> Sequence[int]:
        self.groups.append(items)
        self.threads.append(threading.current_thread().name)
        self.begun.set()
        assert self.go_on.wait(10)
        if 13 in items:
            raise RuntimeError("no")
        return [item * 10 for item in items]
