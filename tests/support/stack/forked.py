"""Python programs forked from a process that has already imported their modules, which saves 2 to 3 s of CPU per start.

Each has its own session, environment, working directory and signal handlers. Its command line is that of the process
that it was forked from, and it shares that process's memory.
"""

import atexit
import os
import runpy
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from multiprocessing import connection, get_context
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from subprocess import TimeoutExpired


class Forked:
    """A running `python -m MODULE …`, with the methods of `subprocess.Popen` that the tests use."""

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        *,
        env: Mapping[str, str],
        folder: Path,
        log: Path,
        errors: Path | None = None,
    ) -> None:
        """Start it in a session of its own; its output is appended to `log`, its errors to `errors` or `log`."""
        self.args = [module, *arguments]
        self.returncode: int | None = None
        self._reading = threading.Lock()
        receiver, sender = _context().Pipe(duplex=False)
        self._process: ForkServerProcess = _context().Process(
            target=_run,
            args=(sender, module, list(arguments), dict(env), str(folder), str(log), str(errors or log)),
        )
        self._process.start()
        sender.close()
        with receiver, suppress(EOFError):
            receiver.recv()  # once its session exists: until then, a signal to the session would find no process
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Return its exit code, negative if a signal ended it; None while it runs."""
        with self._reading:
            if self.returncode is None:
                self.returncode = self._process.exitcode
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return its exit code; raise `TimeoutExpired` after `timeout` seconds."""
        if self.returncode is None:
            connection.wait([self._process.sentinel], timeout)
        code = self.poll()
        if code is None:
            raise TimeoutExpired(self.args, timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send it SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send it SIGKILL."""
        self.send_signal(signal.SIGKILL)


@cache
def _context() -> ForkServerContext:
    context = get_context("forkserver")
    context.set_forkserver_preload(["tests.support.stack.loaded"])
    return context


def _run(
    started: connection.Connection,
    module: str,
    arguments: list[str],
    env: dict[str, str],
    folder: str,
    log: str,
    errors: str,
) -> None:
    """In the new process: become `python -m module arguments`."""
    os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # with nohup, tests would inherit that it is ignored
    os.chdir(folder)
    for number, (file, mode) in enumerate([(os.devnull, "rb"), (log, "ab"), (errors, "ab")]):
        with open(file, mode) as opened:  # noqa: PTH123 - only its number is needed
            os.dup2(opened.fileno(), number)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - as Python opens it at its start
    sys.stdout = open(1, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(env)
    sys.argv = [module, *arguments]
    sys.path[:0] = env.get("PYTHONPATH", "").split(os.pathsep)
    sys.modules.pop("sitecustomize", None)
    with suppress(ImportError):
        import_module("sitecustomize")  # as Python does when it starts; the drill sets the clock in it
    started.send(None)
    started.close()
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()
