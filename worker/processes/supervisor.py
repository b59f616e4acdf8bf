"""Keeps a number of child processes running: one that dies is started again, a stop reaches all of them."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

import structlog

log = structlog.get_logger()

QUICK_DEATH_SECONDS = 30.0
LONGEST_PAUSE_SECONDS = 15.0
GRACE_SECONDS = 30.0


class Child:
    """One supervised process and the pause before it is started again."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = list(command)
        self._pause = 0.0
        self._start_at = 0.0
        self._started_at = 0.0
        self.process: subprocess.Popen[bytes] | None = None

    def tend(self) -> None:
        """Start the process if it does not run and its pause is over. The pause doubles while it dies quickly."""
        now = time.monotonic()
        if self.process is not None and (code := self.process.poll()) is not None:
            quick = now - self._started_at < QUICK_DEATH_SECONDS
            self._pause = min(max(0.5, self._pause * 2), LONGEST_PAUSE_SECONDS) if quick else 0.0
            self._start_at = now + self._pause
            log.warning("process_ended", pid=self.process.pid, code=code, again_in_seconds=self._pause)
            self.process = None
        if self.process is None and now >= self._start_at:
            self._started_at = now
            # The pipe is never written to: it tells the child when this process is gone. A session of its own: Ctrl-C
            # reaches this process only, which asks the child to stop once (RQ takes a second signal for impatience).
            self.process = subprocess.Popen(self._command, stdin=subprocess.PIPE, start_new_session=True)  # noqa: S603


def end_with_parent() -> None:
    """In a child: stop as on SIGTERM when the supervisor is gone, however it ended."""

    def wait() -> None:
        # Not through sys.stdin's buffer: Python aborts if its lock is held when the process ends.
        while os.read(sys.stdin.fileno(), 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True, name="end-with-parent").start()


def supervise(commands: Sequence[Sequence[str]], stop: threading.Event) -> None:
    """Run each of `commands` until `stop` is set, then end them: SIGTERM, and SIGKILL after 30 seconds."""
    children = [Child(command) for command in commands]
    try:
        while not stop.is_set():
            for child in children:
                child.tend()
            stop.wait(0.2)
    finally:
        running = [child.process for child in children if child.process is not None]
        for process in running:
            process.send_signal(signal.SIGTERM)
        ends = time.monotonic() + GRACE_SECONDS
        for process in running:
            try:
                process.wait(max(0.0, ends - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
