"""Injects faults into the installation, two at a time, until it is stopped."""

import threading
import time
from collections import Counter
from random import Random

import psutil
import structlog
from redis.exceptions import RedisError
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from tests.drill.faults import Fault, Field, all_faults
from tests.drill.installation import Installation
from tests.support.stack.processes import StackError
from worker.errors import OperatorError

log = structlog.get_logger()

HANDS = 2
"""Faults at the same time."""
MOSTLY = 0.7
"""The share of faults that wait until the installation is ready; the others may strike one that is down."""
RECOVERY_SECONDS = 60.0
MOST_PUT_OFF = 20
PUT_OFF = (AssertionError, DBAPIError, OperatorError, RedisError, StackError, psutil.Error, OSError)
"""Raised by a fault that found no target, mostly because another fault had just struck it."""


class Injector:
    """Begins at once. `usual`: the usual seconds of a fault that lasts; `pause`: between two faults of one hand."""

    def __init__(
        self, installation: Installation, engine: Engine, seed: int, *, usual: float, pause: tuple[float, float]
    ) -> None:
        self.struck: Counter[tuple[str, str]] = Counter()
        self.problems: list[str] = []
        """Problems found by faults that check something themselves."""
        self._installation, self._engine = installation, engine
        self._usual, self._pause = usual, pause
        self._faults = all_faults()
        self._chance = Random(f"{seed}-deck")
        self._deck: list[Fault] = []
        self._in_force: list[Fault] = []
        self._put_off: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._hands = [threading.Thread(target=self._strike_on, args=(Random(f"{seed}-{n}"),)) for n in range(HANDS)]
        for hand in self._hands:
            hand.daemon = True
            hand.start()

    @property
    def missing(self) -> list[str]:
        """The kinds of faults that have not struck yet."""
        return [f"{fault.kind} {fault.target}" for fault in self._faults if not self.struck[fault.kind, fault.target]]

    def in_force(self) -> list[str]:
        """The faults that are striking now."""
        return [f"{fault.kind} {fault.target}" for fault in list(self._in_force)]

    def require_striking(self) -> None:
        """Raise `StackError` if the drill itself is broken: a hand has ended, or a fault never gets to strike."""
        if not all(hand.is_alive() for hand in self._hands):
            raise StackError(
                "the drill itself is broken: a thread that injects faults has ended, see the traceback above"
            )
        for (kind, target), times in self._put_off.items():
            if times > MOST_PUT_OFF and not self.struck[kind, target]:
                raise StackError(f"the drill itself is broken: {kind} {target} was put off {times} times")

    def stop(self) -> None:
        """Wait for the faults in progress, and begin no more."""
        self._over.set()
        for hand in self._hands:
            hand.join()

    def _strike_on(self, random: Random) -> None:
        field = Field(self._installation, self._engine, random, self._usual, self.problems)
        while not self._over.wait(random.uniform(*self._pause)):
            if random.random() < MOSTLY:
                self._wait_until_ready()
            fault = self._draw()
            log.info("fault", kind=fault.kind, target=fault.target)
            self._in_force.append(fault)
            try:
                fault.strike(field)
            except PUT_OFF as error:
                log.info("fault_put_off", kind=fault.kind, target=fault.target, error=repr(error))
                self._put_off[fault.kind, fault.target] += 1
                continue
            finally:
                self._in_force.remove(fault)
            with self._lock:
                self.struck[fault.kind, fault.target] += 1

    def _wait_until_ready(self) -> None:
        """Wait until the installation is ready again: on a slow machine it would never recover otherwise."""
        ends = time.monotonic() + RECOVERY_SECONDS
        while time.monotonic() < ends and not self._over.wait(0.2):
            if self._installation.ready():
                return

    def _draw(self) -> Fault:
        """Draw from a shuffled deck of those that have not struck yet; of all, once each has."""
        with self._lock:
            if not self._deck:
                left = [fault for fault in self._faults if not self.struck[fault.kind, fault.target]]
                self._deck = self._chance.sample(left or self._faults, len(left or self._faults))
            return self._deck.pop()
