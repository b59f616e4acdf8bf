"""One thread for each hook, so that a slow hook never delays another."""

import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager


class HookThreads:
    """Follows each hook in its own thread whenever woken.

    Args:
        names: the hooks.
        follow: sends a hook the changes it has not received, until `stopping()` is true.
        contained: returns a context for a hook that reports any error of `follow`. The clock wakes the hook again.
    """

    def __init__(
        self,
        names: Iterable[str],
        follow: Callable[[str, Callable[[], bool]], None],
        contained: Callable[[str], AbstractContextManager[None]],
    ) -> None:
        self._follow = follow
        self._contained = contained
        self._stopping = threading.Event()
        self._woken = {name: threading.Event() for name in names}
        self._threads = [
            threading.Thread(target=self._run, args=(name, woken), daemon=True, name=f"hook-{name}")
            for name, woken in self._woken.items()
        ]
        for thread in self._threads:
            thread.start()

    def wake(self) -> None:
        """Make each hook look for changes: now, or again when it has finished sending. Returns at once."""
        for woken in self._woken.values():
            woken.set()

    def close(self) -> None:
        """End the threads, each after the call that it is making."""
        self._stopping.set()
        self.wake()
        for thread in self._threads:
            thread.join()

    def _run(self, name: str, woken: threading.Event) -> None:
        while woken.wait() and not self._stopping.is_set():
            woken.clear()
            with self._contained(name):
                self._follow(name, self._stopping.is_set)
