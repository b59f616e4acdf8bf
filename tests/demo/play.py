"""Plays the life of the companies against the stack and watches until all of it has arrived in the mirror."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import Engine, func, select

from models.database import reading
from models.tables import Event, EventStatus
from tests.demo.machine import JSON, call
from tests.demo.processes import StackError
from tests.demo.stack import Stack

KNOBS: JSON = {
    "duplicates": 0.10,
    "reordering": 0.30,
    "reorder_window": 20,
    "wrong_signatures": 0.02,
    "keep_alive": True,
    "concurrency": 8,
}
PATIENCE_SECONDS = 60.0
"""How long nothing may move. Not a limit of the whole: a busy machine is slow, but it is not wrong."""
LOOK_EVERY_SECONDS = 0.2


@dataclass(frozen=True)
class Sample:
    """How far things were at one moment: `workos` are the sandbox's counters, `inbox` counts events by status."""

    seconds: float
    workos: JSON
    inbox: dict[str, int]

    @property
    def sent(self) -> int:
        """Deliveries made, forged ones too."""
        return int(self.workos["sent"] + self.workos["forged"])

    @property
    def applied(self) -> int:
        """Events that the worker is done with."""
        return self.inbox.get(EventStatus.DONE, 0)

    @property
    def settled(self) -> bool:
        """Whether nothing is under way any more."""
        sending = self.workos["playing"] or self.workos["pending"]
        return not sending and not self.inbox.get(EventStatus.PENDING, 0)


def begin(stack: Stack, *, events: int, companies: int, seed: int) -> None:
    """Set the sandbox's knobs, register our endpoint as in the dashboard, and let the companies live."""
    url = f"{stack.sandbox_url}/sandbox"
    call("PUT", f"{url}/knobs", KNOBS)
    call("POST", f"{url}/endpoints", {"url": stack.webhook_url, "secret": stack.secret})
    call("POST", f"{url}/play", {"events": events, "companies": companies, "seed": seed})


def watch(stack: Stack, engine: Engine) -> Iterator[Sample]:
    """Yield samples until all is settled; the last one is.

    Raises:
        StackError: a process ended, or nothing moved for long; says what is missing.
    """
    started = moved = time.monotonic()
    before: tuple[int, int] | None = None
    while True:
        stack.require_running()
        sample = _look(stack, engine, started)
        yield sample
        if sample.settled:
            return
        if before != (sample.sent, sample.applied):
            before, moved = (sample.sent, sample.applied), time.monotonic()
        if time.monotonic() - moved > PATIENCE_SECONDS:
            logs = "\n".join(stack.processes[name].tail() for name in ("web", "worker"))
            raise StackError(f"nothing moved for {PATIENCE_SECONDS:.0f} s: {_missing(sample)}\n{logs}")
        time.sleep(LOOK_EVERY_SECONDS)


def _look(stack: Stack, engine: Engine, started: float) -> Sample:
    # In this order: what was acknowledged before the first look is in the inbox at the second.
    workos = call("GET", f"{stack.sandbox_url}/sandbox/progress")
    inbox = count_by(engine, "status")
    return Sample(time.monotonic() - started, workos, inbox)


def count_by(engine: Engine, column: str) -> dict[str, int]:
    """Return how many events of the inbox there are by each value of a column."""
    by = Event.__table__.c[column]
    with reading(engine) as tx:
        return {str(value): number for value, number in tx.execute(select(by, func.count()).group_by(by).order_by(by))}


def _missing(sample: Sample) -> str:
    workos, inbox = sample.workos, sample.inbox
    return (
        f"{workos['generated'] - workos['acknowledged']} of {workos['generated']} events are not acknowledged, "
        f"{workos['pending']} deliveries wait, {inbox.get(EventStatus.PENDING, 0)} events in the inbox are not applied"
    )


def faults(sample: Sample) -> list[str]:
    """Return what is wrong with a settled run, apart from the mirror."""
    workos, inbox = sample.workos, sample.inbox
    stored = sum(inbox.values())
    wrong = {
        f"{workos['forged_accepted']} forged deliveries were accepted": workos["forged_accepted"],
        f"{workos['forged'] - workos['forged_refused']} forged deliveries were not answered 401": (
            workos["forged"] - workos["forged_refused"]
        ),
        f"{inbox.get(EventStatus.FAILED, 0)} events failed": inbox.get(EventStatus.FAILED, 0),
        f"{workos['acknowledged']} of {workos['generated']} events were acknowledged": (
            workos["generated"] - workos["acknowledged"]
        ),
        f"the inbox holds {stored} events, WorkOS made {workos['generated']}": stored - workos["generated"],
    }
    return [text for text, number in wrong.items() if number]
