"""A sender that repeats each delivery until it is answered 200, as WorkOS and Stripe do, while the server is killed."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import aiohttp

from tests.benchmarks.deliveries import PATH
from tests.benchmarks.load import post
from tests.benchmarks.peers.system import System
from tests.benchmarks.peers.versions import Version

PAUSE_SECONDS = 0.05
"""Before a delivery is repeated."""
TIMEOUT = aiohttp.ClientTimeout(total=30)
MAX_REPEATS = 2_000
"""Of one delivery. A server that does not come back is a fault, not a result."""


@dataclass
class Sent:
    """The result: the number of 200s, other answers and errors by name, kills, and seconds until the last 200."""

    acknowledged: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    kills: int = 0
    seconds: float = 0.0


def send_all(system: System, versions: Sequence[Version], connections: int, kills: int) -> Sent:
    """Send all in order over `connections` connections, and kill the server `kills` times at equal distances.

    Raises:
        RuntimeError: a delivery was repeated very often and never answered 200.
    """

    async def run() -> Sent:
        sent, left, began = Sent(), iter(versions), time.perf_counter()
        async with aiohttp.ClientSession(timeout=TIMEOUT) as session, asyncio.TaskGroup() as group:
            group.create_task(_kill(system, sent, len(versions), kills))
            for _ in range(connections):
                group.create_task(_one_by_one(session, system, left, sent))
        sent.seconds = time.perf_counter() - began
        return sent

    return asyncio.run(run())


async def _kill(system: System, sent: Sent, number: int, kills: int) -> None:
    for turn in range(1, kills + 1):
        while sent.acknowledged < number * turn // (kills + 1):  # noqa: ASYNC110 - a count, not an event
            await asyncio.sleep(0.005)
        await asyncio.to_thread(system.server.kill_and_restart)
        sent.kills += 1


async def _one_by_one(session: aiohttp.ClientSession, system: System, left: Iterator[Version], sent: Sent) -> None:
    for version in left:
        for _ in range(MAX_REPEATS):
            status = await _post(session, system, version)
            if status == "200":
                sent.acknowledged += 1
                break
            sent.refused[status] += 1
            await asyncio.sleep(PAUSE_SECONDS)
        else:
            raise RuntimeError(f"{system.name} never acknowledged {version}: {dict(sent.refused)}")


async def _post(session: aiohttp.ClientSession, system: System, version: Version) -> str:
    signature, body = system.form.delivery(version)
    return await post(session, f"http://127.0.0.1:{system.server.port}{PATH}", body, signature)
