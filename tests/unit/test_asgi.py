"""The ASGI application under pressure: memory for bodies."""

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

from flask import Flask
from redis import Redis

from webhooks.asgi import MAX_HELD_BYTES, SMALL_BYTES, Gateway
from worker.metrics import Counters

SIZE = 1_048_576
LARGE = MAX_HELD_BYTES // SIZE + 20


def gateway_for(path: str, answer: Callable[[], str]) -> Gateway:
    """Return a gateway with one thread, and one route, which takes up to two mebibytes."""
    app = Flask("test")
    app.config["MAX_CONTENT_LENGTH"] = 2 * SIZE
    app.add_url_rule(path, view_func=answer, methods=["POST"])
    return Gateway(app, 1, Counters(Redis(), in_background=False))


async def ask(gateway: Gateway, path: str, size: int, parts: list[bytes]) -> int:
    """Send a request of `size` bytes, whose body arrives in `parts` and then stops. Return the status."""
    waiting = iter(parts)
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0)
        part = next(waiting, None)
        if part is None:
            await asyncio.sleep(60)
        return {"type": "http.request", "body": part, "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "raw_path": path.encode(),
        "query_string": b"",
        "scheme": "http",
        "server": None,
        "client": None,
        "headers": [(b"content-length", str(size).encode())],
    }
    await gateway(scope, receive, send)
    status: int = sent[0]["status"]
    return status


def test_many_large_bodies_at_once_are_refused_and_small_requests_are_answered() -> None:
    gateway = gateway_for("/healthz", lambda: "")

    async def both() -> tuple[list[int], list[int]]:
        parts = ([b"x" * (SIZE // 8 + LARGE - each)] * 8 for each in range(LARGE))  # the first is always the largest
        large = [asyncio.create_task(ask(gateway, "/healthz", SIZE + SMALL_BYTES, each)) for each in parts]
        small = [asyncio.create_task(ask(gateway, "/healthz", 3, [b"abc"])) for _ in range(50)]
        answers = list(await asyncio.gather(*small))
        ended, waiting = await asyncio.wait(large, timeout=0.5)
        for task in waiting:
            task.cancel()
        return answers, [task.result() for task in ended]

    small, large = asyncio.run(both())
    assert Counter(small) == {200: 50}
    assert set(large) == {503}


def test_bodies_that_wait_for_a_thread_count_as_held_until_they_are_answered() -> None:
    free = threading.Event()

    def answer() -> str:
        free.wait()
        return ""

    gateway = gateway_for("/page", answer)

    async def all_of_them() -> tuple[list[int], list[int]]:
        tasks = [asyncio.create_task(ask(gateway, "/page", SIZE, [b"x" * (SIZE // 2)] * 2)) for _ in range(LARGE)]
        refused, waiting = await asyncio.wait(tasks, timeout=0.5)
        free.set()
        return [task.result() for task in refused], await asyncio.gather(*waiting)

    refused, answered = asyncio.run(all_of_them())
    assert set(refused) == {503}
    assert Counter(answered) == {200: LARGE - len(refused)}
