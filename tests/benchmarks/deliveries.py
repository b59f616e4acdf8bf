"""Deliveries, signed beforehand, and two cheap ways to send them: wrk, and a client on bare sockets."""

import asyncio
import json
import shutil
import statistics
import subprocess
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmarks.runner import Sample
from tests.support import made, sign

PATH = "/webhooks/workos"
SCRIPT = Path(__file__).with_name("deliver.lua")
WRK = shutil.which("wrk")
GENERATOR = "wrk" if WRK else "a client on bare sockets (asyncio)"
TOO_LATE_SECONDS = 5.0


def signed(number: int) -> list[tuple[str, bytes]]:
    """Return so many deliveries of new events, each a signature made now and a body."""
    mark, run = "event_of_bench", uuid.uuid4().hex
    body = json.dumps(made("organization_membership.created", event_id=mark, id=f"om_{mark}"))
    bodies = (body.replace(mark, f"{run}_{place}").encode() for place in range(number))
    return [(sign(body), body) for body in bodies]


def send_for(seconds: float, port: int, deliveries: Sequence[tuple[str, bytes]], connections: int) -> Sample:
    """Send for so long, over keep-alive connections, and return what came of it."""
    return _wrk(WRK, seconds, port, deliveries, connections) if WRK else send(port, deliveries, connections, seconds)


def _wrk(wrk: str, seconds: float, port: int, deliveries: Sequence[tuple[str, bytes]], connections: int) -> Sample:
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
        self.sent = time.perf_counter()
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Note the answer once it is whole."""
        self.got += data
        head, found, body = self.got.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split(None, 1)[0]) if found else 0
        if found and len(body) >= length:
            self.answers.append((head[9:12], time.perf_counter() - self.sent))
            self.got = b""
            self._next()

    def connection_lost(self, error: Exception | None) -> None:
        """End; whoever was not answered was failed."""
        if error is not None:
            self.answers.append((b"", time.perf_counter() - self.sent))
        if not self.done.done():
            self.done.set_result(None)


def send(port: int, deliveries: Sequence[tuple[str, bytes]], connections: int, seconds: float = 1e9) -> Sample:
    """Send each once, over keep-alive connections, for at most so long, and return what came of it."""
    head = f"POST {PATH} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
    requests = [
        f"{head}Content-Length: {len(body)}\r\nWorkOS-Signature: {signature}\r\n\r\n".encode() + body
        for signature, body in deliveries
    ]
    return asyncio.run(_send(port, requests, connections, seconds))


async def _send(port: int, requests: Sequence[bytes], connections: int, seconds: float) -> Sample:
    loop, waiting, began = asyncio.get_running_loop(), iter(requests), time.perf_counter()
    lines = [Line(waiting, began + seconds, loop.create_future()) for _ in range(connections)]
    for line in lines:
        await loop.create_connection(lambda line=line: line, "127.0.0.1", port)  # type: ignore[misc]  # bound on purpose
    await asyncio.gather(*(line.done for line in lines))
    took = time.perf_counter() - began
    answers = [answer for line in lines for answer in line.answers]
    failed = sum(status != b"200" for status, _ in answers) + (len(requests) - len(answers) if seconds >= 1e9 else 0)
    times = sorted(spent * 1e3 for _, spent in answers)
    late = sum(spent > TOO_LATE_SECONDS * 1e3 for spent in times)
    p99 = times[int(len(times) * 0.99)]
    return {**_sample(len(answers), took, failed, statistics.median(times), p99), "later than 5 s": late}
