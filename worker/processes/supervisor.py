"""Keeps child processes running, and stops them all when it is stopped.

Children are forked, so that modules are loaded only once and a child that died is replaced quickly.
"""

import gc
import multiprocessing
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing import connection
from multiprocessing.context import ForkProcess
from pathlib import Path

import structlog

from worker import error_reports
from worker.backoff import backoff
from worker.errors import ConfigurationError, stack_of, unexpected
from worker.processes.alive import BEAT_SECONDS, Beats

log = structlog.get_logger()

QUICK_DEATH_SECONDS = 30.0
FIRST_PAUSE_SECONDS = 0.5
MAX_PAUSE_SECONDS = 15.0
GRACE_SECONDS = 30.0
POLL_SECONDS = 0.2
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Lifeline:
    """A pipe that notifies children when the supervisor ends, even by SIGKILL: its other end is then closed."""

    def __init__(self) -> None:
        self._held, self._kept = os.pipe()

    def watch(self, beat: Callable[[], object]) -> None:
        """In a child: send it SIGTERM when the supervisor has ended. Until then, call `beat` every two seconds."""
        os.close(self._kept)

        def wait() -> None:
            while not select.select([self._held], [], [], BEAT_SECONDS)[0]:
                beat()
            os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=wait, daemon=True, name="end-with-parent").start()

    def close(self) -> None:
        """In the supervisor: close both ends."""
        os.close(self._held)
        os.close(self._kept)


class Child:
    """One supervised process and the pause before it is started again."""

    def __init__(self, work: Callable[[], None], lifeline: Lifeline, beats: Beats, place: int) -> None:
        self._work = work
        self._lifeline = lifeline
        self._beats, self._place = beats, place
        self._quick_deaths = 0
        self._start_at = 0.0
        self._started_at = 0.0
        self.process: ForkProcess | None = None

    def check(self) -> None:
        """Start the process if it is not running and its pause is over. The pause doubles if it keeps dying quickly."""
        now = time.monotonic()
        if self.process is not None and (code := self.process.exitcode) is not None:
            quick = now - self._started_at < QUICK_DEATH_SECONDS
            self._quick_deaths = self._quick_deaths + 1 if quick else 0
            pause = backoff(self._quick_deaths, FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS) if quick else 0.0
            self._start_at = now + pause
            log.warning("process_ended", pid=self.process.pid, code=code, again_in_seconds=pause)
            self.note_end()
        if self.process is None and now >= self._start_at:
            self._start(now)

    def note_end(self) -> None:
        """Forget the process, which has ended."""
        self.process = None
        self._beats.expect(self._place, running=False)

    def _start(self, now: float) -> None:
        """Fork the process. If the system refuses, as at its limit of processes, raise `OSError` and pause as usual."""
        self._started_at = now
        self._quick_deaths += 1
        self._start_at = now + backoff(self._quick_deaths, FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS)
        process = multiprocessing.get_context("fork").Process(target=self._run)
        # Until it has its own handlers, the child would handle signals as the supervisor does.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        self.process = process
        self._beats.expect(self._place, running=True)
        self._quick_deaths -= 1

    def _run(self) -> None:
        # A new session, so that Ctrl-C reaches only the supervisor, which then signals the child once. After a second
        # signal, RQ would not finish the job.
        os.setsid()
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        self._beats.beat(self._place)
        self._lifeline.watch(partial(self._beats.beat, self._place))
        try:
            self._work()
        except Exception as error:  # noqa: BLE001 - multiprocessing would print the traceback with its values
            problem = str(error) if isinstance(error, ConfigurationError) else unexpected(error)
            log.error("process_failed", error=problem, stack=stack_of(error))  # noqa: TRY400 - see above
            error_reports.capture(error, place="process")
            error_reports.stop()
            sys.exit(1)


def supervise(
    jobs: Sequence[Callable[[], None]],
    stop: threading.Event,
    report: Callable[[BaseException], None],
    stopping: Callable[[], None] = lambda: None,
    beats_file: Path | None = None,
) -> None:
    """Run each of `jobs` in a process until `stop` is set; then send SIGTERM, and SIGKILL after 30 seconds.

    `report` is called with each error of starting a process, which is tried again. It must leave no thread and no
    connection behind. `stopping` is called before the first SIGTERM. All processes note in `beats_file` that they run.

    The calling process must have no other threads and no open connections, because a fork would break them.
    """
    gc.freeze()  # keeps the memory of loaded modules shared: no child's garbage collector visits them
    lifeline = Lifeline()
    beats = Beats(beats_file, len(jobs))
    children = [Child(job, lifeline, beats, place) for place, job in enumerate(jobs, start=1)]
    try:
        while not stop.is_set():
            beats.beat()
            for child in children:
                try:
                    child.check()
                except Exception as error:  # noqa: BLE001 - the other children continue, and this one is tried again
                    report(error)
            stop.wait(POLL_SECONDS)
    finally:
        stopping()
        _stop(children, beats)
        lifeline.close()


def _stop(children: Sequence[Child], beats: Beats) -> None:
    """Stop all children. Until the last one has ended, this process and those that still run count as alive."""
    running = {child.process: child for child in children if child.process is not None}
    for process in running:
        process.terminate()
    ends = time.monotonic() + GRACE_SECONDS
    while running:
        beats.beat()
        if time.monotonic() > ends:
            for process in running:
                process.kill()
        connection.wait([process.sentinel for process in running], POLL_SECONDS)
        for process in [process for process in running if process.exitcode is not None]:
            running.pop(process).note_end()
