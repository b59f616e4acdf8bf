"""Real processes that leave nothing behind, whatever happens to the one that started them."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from tests.support.stack.forked import Forked

GRACE_SECONDS = 15.0
"""Seconds between SIGTERM and SIGKILL."""
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StackError(Exception):
    """Something did not start, or has ended; the message carries the end of its log."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, SIGTERM or a closed terminal; `number` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Interruptions:
    """Turns signals into one `Interrupted`, but not between starting a process and taking note of it.

    Only the first raises: a second Ctrl-C must not interrupt the cleaning up after the first.
    """

    def __init__(self) -> None:
        self._holds = 0
        self._waiting: int | None = None
        self._raised = False

    def install(self) -> None:
        """Take over the signals; in the main thread."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._handle)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._holds:
            self._waiting = self._waiting or number
        elif not self._raised:
            self._raised = True
            raise Interrupted(number)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let signals wait until the end of the block."""
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1
            if not self._holds and self._waiting:
                self._handle(self._waiting, None)

    def cleaning_up(self) -> None:
        """From here on signals do nothing: everything is being stopped anyway."""
        self._raised = True


@contextmanager
def ctrl_c_blocked() -> Iterator[None]:
    """Processes started inside never see Ctrl-C.

    For servers that libraries start in our process group, where a terminal's Ctrl-C would reach them before us.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Process:
    """A command running in a session of its own, its output in the file `log`, and its errors in `errors` or `log`.

    A forked one is `python -m MODULE …`, forked from a process that has loaded the modules.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        env: Mapping[str, str],
        folder: Path,
        log: Path,
        *,
        errors: Path | None = None,
        forked: bool = False,
    ) -> None:
        self.name = name
        self.log = log
        self.popen: Forked | subprocess.Popen[bytes]
        if forked:
            _python, _m, module, *arguments = command
            self.popen = Forked(module, arguments, env=env, folder=folder, log=log, errors=errors)
            return
        with log.open("ab") as output, (errors or log).open("ab") as error_output:
            self.popen = subprocess.Popen(
                command,
                env=dict(env),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=error_output,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Its process id, which is also that of its group and session."""
        return self.popen.pid

    def require_running(self) -> None:
        """Raise `StackError` if it has ended."""
        code = self.popen.poll()
        if code is not None:
            raise StackError(f"{self.name} ended with code {code}\n{self.tail()}")

    def require_success(self, seconds: float) -> None:
        """Wait for its end; raise `StackError` unless that comes in time and with code 0."""
        try:
            code = self.popen.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise StackError(f"{self.name} did not end within {seconds:.0f} s\n{self.tail()}") from error
        if code != 0:
            raise StackError(f"{self.name} ended with code {code}\n{self.tail()}")

    def wait_until(self, ready: Callable[[], bool], seconds: float = 120.0) -> None:
        """Return once `ready` says so; raise `StackError` if the process ends first or time is up."""
        ends = time.monotonic() + seconds
        while not ready():
            self.require_running()
            if time.monotonic() > ends:
                raise StackError(f"{self.name} was not ready within {seconds:.0f} s\n{self.tail()}")
            time.sleep(0.05)

    def tail(self, lines: int = 15) -> str:
        """Return the last lines of its log, indented."""
        text = self.log.read_text(errors="replace").splitlines()[-lines:] or ["(nothing)"]
        return "\n".join([f"  the end of {self.log.name}:", *(f"  | {line}" for line in text)])

    def send(self, number: int) -> None:
        """Send a signal to the process alone."""
        self.popen.send_signal(number)

    def kill(self) -> None:
        """End it and all of its group at once, as a machine that goes down would."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self.popen.wait()


def stop_all(processes: Iterable[Process], grace: float = GRACE_SECONDS) -> None:
    """Ask all of them to end, wait for each, and kill what is left of their groups."""
    stopping = list(processes)
    for process in stopping:
        process.send(signal.SIGTERM)
    ends = time.monotonic() + grace
    for process in stopping:
        with suppress(subprocess.TimeoutExpired):
            process.popen.wait(max(0.0, ends - time.monotonic()))
        process.kill()
