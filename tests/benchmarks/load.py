"""A load generator: signed and timed deliveries, as fast as they are accepted or at a rate."""

import asyncio
import json
import time
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import quantiles

import aiohttp

from tests.support import JSON, minute, sample, sign

PEOPLE = 10_000
"""Users and memberships, with a tenth as many workspaces; later events update them."""
PER_WORKSPACE = 10
TYPES = ("organization.updated", "user.updated", "organization_membership.updated")
TEMPLATES = [sample(type) for type in TYPES]
TIMEOUT = aiohttp.ClientTimeout(total=30)


@dataclass
class Sent:
    """The result of a load: seconds from each planned sending to its 200, and the numbers of other answers."""

    waits: "array[float]" = field(default_factory=lambda: array("d"))
    refused: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def per_second(self) -> float:
        """Events accepted in a second."""
        return len(self.waits) / self.seconds

    def percentiles(self) -> tuple[float, float]:
        """Return p50 and p99 of the time to acknowledge, in seconds."""
        cuts = quantiles(self.waits, n=100)
        return cuts[49], cuts[98]


def event(number: int, prefix: str = "load") -> JSON:
    """The event of one number: a later version of a workspace, a user or a membership; parents come first."""
    kind, place = number % len(TYPES), number // len(TYPES)
    person, version = place % PEOPLE, place // PEOPLE
    workspace = f"org_{person // PER_WORKSPACE}"
    abouts: list[JSON] = [
        {"id": workspace, "name": f"Company {version}", "domains": []},
        {"id": f"user_{person}", "email": f"person{person}@company{person // PER_WORKSPACE}.example"},
        {"id": f"om_{person}", "organization_id": workspace, "user_id": f"user_{person}", "status": "active"},
    ]
    data = TEMPLATES[kind]["data"] | abouts[kind] | {"updated_at": minute(place)}
    return TEMPLATES[kind] | {"id": f"event_{prefix}_{number}", "created_at": minute(place), "data": data}


def send(
    url: str, secret: str, numbers: range, prefix: str, *, rate: float | None = None, connections: int = 16
) -> Sent:
    """Send the events of these numbers, `rate` of them a second (None: as fast as they are taken).

    At a rate the time to acknowledge counts from when an event was due, so that an endpoint cannot hide a stall.
    """

    async def all_of_them() -> Sent:
        sent, turns, began = Sent(), enumerate(numbers), time.perf_counter()
        async with aiohttp.ClientSession(timeout=TIMEOUT) as session, asyncio.TaskGroup() as group:
            for _ in range(connections):
                group.create_task(one_by_one(session, sent, turns, began))
        sent.seconds = time.perf_counter() - began
        return sent

    async def one_by_one(
        session: aiohttp.ClientSession, sent: Sent, turns: Iterator[tuple[int, int]], began: float
    ) -> None:
        for turn, number in turns:
            due = began + turn / rate if rate else time.perf_counter()
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            body = json.dumps(event(number, prefix)).encode()
            status = await post(session, url, body, sign(body, secret))
            if status == "200":
                sent.waits.append(time.perf_counter() - due)
            else:
                sent.refused[status] += 1

    return asyncio.run(all_of_them())


async def post(session: aiohttp.ClientSession, url: str, body: bytes, signature: str) -> str:
    """Send a delivery; return the status, or the name of the error."""
    try:
        async with session.post(url, data=body, headers={"WorkOS-Signature": signature}) as answer:
            await answer.read()
            return str(answer.status)
    except (aiohttp.ClientError, TimeoutError) as error:
        return type(error).__name__
