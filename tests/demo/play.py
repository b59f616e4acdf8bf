"""Plays events against the stack and waits until the mirror has all of them."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Engine, func, select

from models.database import read_transaction
from models.tables import Event, EventStatus, Read, Revocation, Task
from models.types import db_clock, db_now
from models.views import mirror_status
from tests.support.stack.machine import JSON, call
from tests.support.stack.processes import StackError
from tests.support.stack.stack import Stack
from worker.kinds import SUBSCRIBED
from worker.reports import listings

KNOBS: JSON = {
    "duplicates": 0.10,
    "reordering": 0.30,
    "reorder_window": 20,
    "wrong_signatures": 0.02,
    "loss": 0.03,
    "keep_alive": True,
    "concurrency": 8,
}
INVITED = "invited.guest@example.org"
STALL_SECONDS = 60.0
"""Fail after this long without progress. There is no limit on the total, because a busy machine is slow."""
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Sample:
    """Progress at one moment: `workos` has the sandbox's counters, `inbox` the number of events by status."""

    seconds: float
    workos: JSON
    inbox: dict[str, int]
    caught_up: int
    """Events that came only from the events API."""
    mirror: str
    """`backfilling` or `current`."""
    reads: int
    """Objects that are due for a confirmed read."""

    @property
    def sent(self) -> int:
        """Deliveries sent, including forged ones."""
        return int(self.workos["sent"] + self.workos["forged"])

    @property
    def applied(self) -> int:
        """Events that have been processed."""
        return self.inbox.get(EventStatus.DONE, 0)

    @property
    def settled(self) -> bool:
        """Whether all events have arrived and all work is finished."""
        sending = self.workos["playing"] or self.workos["pending"]
        arriving = sum(self.inbox.values()) < self.workos["generated"] or self.inbox.get(EventStatus.PENDING, 0)
        return not (sending or arriving or self.reads) and self.mirror == "current"


def begin(stack: Stack, *, knobs: JSON = KNOBS, **life: Any) -> None:
    """Set the sandbox's knobs, register the endpoint, and start to play.

    Args:
        stack: the running processes.
        knobs: rates of duplicates, losses and so on.
        life: `events`, `companies`, `seed`, and `rate` in events per second (default: as fast as possible).
    """
    url = f"{stack.sandbox_url}/sandbox"
    call("PUT", f"{url}/knobs", knobs)
    endpoint = {"url": stack.webhook_url, "secret": stack.secret, "events": SUBSCRIBED}
    call("POST", f"{url}/endpoints", endpoint)
    call("POST", f"{url}/play", life)


def watch(stack: Stack, engine: Engine, stall_seconds: float = STALL_SECONDS) -> Iterator[Sample]:
    """Yield samples until one is settled; that is the last one.

    Raises:
        StackError: a process ended, or there was no progress for `stall_seconds`.
    """
    started = moved = time.monotonic()
    before: tuple[int, int, str, int] | None = None
    while True:
        stack.require_running()
        sample = _sample(stack, engine, started)
        yield sample
        if sample.settled:
            return
        if before != (now := (sample.sent, sample.applied, sample.mirror, sample.reads)):
            before, moved = now, time.monotonic()
        if time.monotonic() - moved > stall_seconds:
            logs = "\n".join(stack.processes[name].tail() for name in ("web", "worker"))
            raise StackError(f"no progress for {stall_seconds:.0f} s: {_missing(sample)}\n{logs}")
        time.sleep(POLL_SECONDS)


def _sample(stack: Stack, engine: Engine, started: float) -> Sample:
    # In this order: events acknowledged before the first query are in the inbox at the second.
    workos = call("GET", f"{stack.sandbox_url}/sandbox/progress")
    inbox = count_by(engine, "status")
    with read_transaction(engine) as tx:
        caught_up = tx.execute(select(func.count()).select_from(Event).where(Event.webhook_at.is_(None))).scalar_one()
        mirror = tx.execute(select(mirror_status.c.state)).scalar_one()
        reads = tx.execute(
            select(func.count()).select_from(Read).where(Read.run_id == "", Read.due_at <= db_now())
        ).scalar_one()
    return Sample(time.monotonic() - started, workos, inbox, caught_up, mirror, reads)


def count_by(engine: Engine, column: str) -> dict[str, int]:
    """Return the number of events in the inbox by value of a column."""
    by = Event.__table__.c[column]
    with read_transaction(engine) as tx:
        return {str(value): number for value, number in tx.execute(select(by, func.count()).group_by(by).order_by(by))}


def invite(stack: Stack, engine: Engine) -> Sample:
    """Invite a person, who signs up, accepts and becomes a member; return the sample once all is applied."""
    url = f"{stack.sandbox_url}/sandbox"

    def operate(operation: str, **arguments: Any) -> str:
        return str(call("POST", f"{url}/operations", {"operation": operation, **arguments})["id"])

    company = call("GET", f"{url}/truth")["organizations"][0]["id"]
    invitation = operate("create_invitation", email=INVITED, organization_id=company, role="member")
    user = operate("create_user", email=INVITED)
    operate("accept_invitation", invitation_id=invitation, user_id=user)
    operate("create_membership", organization_id=company, user_id=user)
    *_, last = watch(stack, engine)
    return last


class Resynced(NamedTuple):
    """Number of objects changed without an event, what the resync found (finding → number), and one removed person."""

    changed: int
    found: dict[str, int]
    revoked: int
    """Sessions of the removed person that were revoked. There was one."""
    role_before: str | None
    role_now: str | None
    """The person's role in the workspace before the change, and now; None for no access."""


def resync(stack: Stack, engine: Engine) -> Resynced:
    """Change a few objects without events, and run `workos-sync resync`."""
    with read_transaction(engine) as tx:
        before = tx.execute(select(db_clock())).scalar_one()
    changed, removed = _change_silently(stack)
    stack.run("resync")
    newest = next(run for run in listings.list_runs(engine) if run["task"] == Task.RESYNC)
    found = listings.run(engine, newest["id"])
    revoked = _revoked(engine, removed)
    roles = [_role(engine, removed, at) for at in (before, None)]
    return Resynced(changed, found["findings"] if found else {}, revoked, *roles)


def _role(engine: Engine, membership: JSON, at: datetime | None) -> str | None:
    """Return the role of the membership's person in its workspace at a time, or now; None for no access."""
    pair = {name: membership[name] for name in ("organization_id", "user_id")}
    return next((row["role"] for row in listings.list_access(engine, pair, at=at)), None)


def _revoked(engine: Engine, membership: JSON) -> int:
    """Wait until the sessions of a removed member are revoked; return how many were."""
    of_member = select(Revocation.sessions).where(
        Revocation.organization_id == membership["organization_id"], Revocation.user_id == membership["user_id"]
    )
    ends = time.monotonic() + STALL_SECONDS
    while time.monotonic() < ends:
        with read_transaction(engine) as tx:
            if number := tx.execute(of_member).scalar_one_or_none():
                return number
        time.sleep(POLL_SECONDS)
    return 0


def _change_silently(stack: Stack) -> tuple[int, JSON]:
    """Change some objects without events; return how many, and the membership that was removed."""
    url = f"{stack.sandbox_url}/sandbox"
    truth = call("GET", f"{url}/truth")
    [company, *_], [user, *_] = truth["organizations"], truth["users"]
    promoted, removed = [m for m in truth["memberships"] if m["status"] == "active" and m["user_id"] != user["id"]][:2]
    role = "member" if promoted["role"]["slug"] == "admin" else "admin"
    operations: list[JSON] = [
        {"operation": "create_organization", "name": "Quiet Company"},
        {"operation": "update_organization", "organization_id": company["id"], "name": f"{company['name']} (renamed)"},
        {"operation": "update_user", "user_id": user["id"], "last_name": "Newname"},
        {"operation": "update_membership", "membership_id": promoted["id"], "role": role},
        {"operation": "delete_membership", "membership_id": removed["id"]},
    ]
    session = {name: removed[name] for name in ("user_id", "organization_id")}
    for operation in ({"operation": "create_session", **session}, *operations):
        call("POST", f"{url}/operations", {**operation, "silently": True})
    return len(operations), removed


def _missing(sample: Sample) -> str:
    workos, inbox = sample.workos, sample.inbox
    return (
        f"{workos['generated'] - sum(inbox.values())} of {workos['generated']} events have not arrived, "
        f"{workos['pending']} deliveries are waiting, {inbox.get(EventStatus.PENDING, 0)} events are not applied, "
        f"{sample.reads} reads are due, and the mirror is {sample.mirror}"
    )


def faults(sample: Sample, resynced: Resynced) -> list[str]:
    """Return what went wrong in a settled run, apart from differences in the mirror."""
    workos, inbox = sample.workos, sample.inbox
    stored = sum(inbox.values())
    wrong = {
        f"{workos['forged_accepted']} forged deliveries were accepted": workos["forged_accepted"],
        f"{workos['forged'] - workos['forged_refused']} forged deliveries were not answered 401": (
            workos["forged"] - workos["forged_refused"]
        ),
        f"{inbox.get(EventStatus.FAILED, 0)} events failed": inbox.get(EventStatus.FAILED, 0),
        f"{workos['acknowledged']} events were acknowledged and {workos['lost']} lost, of {workos['generated']}": (
            workos["generated"] - workos["acknowledged"] - workos["lost"]
        ),
        f"catch-up fetched {sample.caught_up} events, but {workos['lost']} webhooks were lost": (
            sample.caught_up - workos["lost"]
        ),
        f"the inbox has {stored} events, but WorkOS generated {workos['generated']}": stored - workos["generated"],
    }
    found = sum(resynced.found.values())
    wrong["the session of a removed person was not revoked"] = resynced.revoked != 1
    wrong["a removed person has access, or had none before"] = bool(resynced.role_now) or not resynced.role_before
    wrong[f"the resync found {found} of {resynced.changed} silent changes"] = resynced.changed - found
    return [text for text, number in wrong.items() if number]
