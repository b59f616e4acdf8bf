"""Deliveries, signed beforehand, and two cheap ways to send them: wrk, and a client on bare sockets."""

import asyncio
import json
import shutil
import statistics
import subprocess
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmarks.runner import Sample
from tests.support import made, sign

PATH = "/webhooks/workos"
SCRIPT = Path(__file__).with_name("deliver.lua")
WRK = shutil.which("wrk")
GENERATOR = "wrk" if WRK else "a client on bare sockets (asyncio)"
TOO_LATE_SECONDS = 5.0
ALL_OF_THEM = 1e9
"""Seconds that are never over."""


Delivery = tuple[str, bytes]
"""A signature and a body."""


def signed(number: int) -> Iterator[Delivery]:
    """Yield `number` deliveries of new events, each signed when it is taken, so that none is too old."""
    mark, run = "event_of_bench", uuid.uuid4().hex
    body = json.dumps(made("organization_membership.created", event_id=mark, id=f"om_{mark}"))
    for place in range(number):
        made_body = body.replace(mark, f"{run}_{place}").encode()
        yield sign(made_body), made_body


def send_for(seconds: float, port: int, deliveries: Iterable[Delivery], connections: int) -> Sample:
    """Send for `seconds` over keep-alive connections, and return the figures."""
    return _wrk(WRK, seconds, port, deliveries, connections) if WRK else send(port, deliveries, connections, seconds)


def _wrk(wrk: str, seconds: float, port: int, deliveries: Iterable[Delivery], connections: int) -> Sample:
    file = Path(f"/tmp/deliveries-{uuid.uuid4().hex}")  # noqa: S108 - a name of our own
    file.write_bytes(b"".join(f"{signature}\t".encode() + body + b"\n" for signature, body in deliveries))
    url = f"http://127.0.0.1:{port}{PATH}"
    options = ["-t1", f"-c{connections}", f"-d{seconds:.0f}s", f"--timeout={TOO_LATE_SECONDS:g}s", "-s", str(SCRIPT)]
    try:
        ran = subprocess.run([wrk, *options, url, "--", str(file)], capture_output=True, text=True, check=True)
    finally:
        file.unlink()
    found = json.loads(ran.stdout.splitlines()[-1])
    return _sample(found["requests"], found["seconds"], found["failed"], found["p50"], found["p99"])


def _sample(requests: int, seconds: float, failed: int, p50: float, p99: float) -> Sample:
    return {"deliveries/s": requests / seconds, "p50 ms": p50, "p99 ms": p99, "failed": failed, "sent": requests}


@dataclass
class Line(asyncio.Protocol):
    """One keep-alive connection: sends the next request as soon as the last one is answered."""

    requests: Iterator[bytes]
    ends: float
    done: asyncio.Future[None]
    answers: list[tuple[bytes, float]] = field(default_factory=list)
    """Of each answer its status and how long it took, in seconds."""
    got: bytes = b""
    waiting: bool = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._next()

    def _next(self) -> None:
        request = next(self.requests, None) if time.perf_counter() < self.ends else None
        if request is None:
            self.transport.close()
            return
        self.sent, self.waiting = time.perf_counter(), True
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Note the answer once it is whole."""
        self.got += data
        head, found, body = self.got.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split(None, 1)[0]) if found else 0
        if found and len(body) >= length:
            self.answers.append((head[9:12], time.perf_counter() - self.sent))
            self.got, self.waiting = b"", False
            self._next()

    def connection_lost(self, error: Exception | None) -> None:
        """End; who was not answered was failed."""
        if self.waiting:
            self.answers.append((b"", time.perf_counter() - self.sent))
        if not self.done.done():
            self.done.set_result(None)


def send(port: int, deliveries: Iterable[Delivery], connections: int, seconds: float = ALL_OF_THEM) -> Sample:
    """Send each once over keep-alive connections, for at most `seconds`, and return the figures."""
    head = f"POST {PATH} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
    requests = (
        f"{head}Content-Length: {len(body)}\r\nWorkOS-Signature: {signature}\r\n\r\n".encode() + body
        for signature, body in deliveries
    )
    return asyncio.run(_send(port, requests, connections, seconds))


async def _send(port: int, requests: Iterator[bytes], connections: int, seconds: float) -> Sample:
    loop, began = asyncio.get_running_loop(), time.perf_counter()
    lines = [Line(requests, began + seconds, loop.create_future()) for _ in range(connections)]
    for line in lines:
        await loop.create_connection(lambda line=line: line, "127.0.0.1", port)  # type: ignore[misc]  # bound on purpose
    await asyncio.gather(*(line.done for line in lines))
    took = time.perf_counter() - began
    answers = [answer for line in lines for answer in line.answers]
    never_sent = sum(1 for _ in requests) if seconds == ALL_OF_THEM else 0  # all connections were lost before
    failed = sum(status != b"200" for status, _ in answers) + never_sent
    times = sorted(spent * 1e3 for _, spent in answers)
    late = sum(spent > TOO_LATE_SECONDS * 1e3 for spent in times)
    p99 = times[int(len(times) * 0.99)]
    return {**_sample(len(answers), took, failed, statistics.median(times), p99), "later than 5 s": late}
