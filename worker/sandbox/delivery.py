"""The webhooks of one environment: signed as by WorkOS, and delayed, duplicated, reordered or lost as the knobs say."""

import asyncio
import hashlib
import hmac
import json
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from random import Random
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from worker.sandbox import shapes
from worker.sandbox.knobs import Knobs
from worker.sandbox.world import World

JSON = dict[str, Any]


def sign(body: bytes, secret: str, milliseconds: int) -> str:
    """Return the `WorkOS-Signature` header of a raw body. The time is in milliseconds since the epoch."""
    message = str(milliseconds).encode() + b"." + body
    return f"t={milliseconds}, v1={hmac.new(secret.encode(), message, hashlib.sha256).hexdigest()}"


def encode(event: JSON) -> bytes:
    """Return the raw body of an event: compact JSON."""
    return json.dumps(event, separators=(",", ":")).encode()


def checked_url(url: str) -> str:
    """The URL of an endpoint; ValueError if webhooks cannot be sent there."""
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return url
    except ValueError:  # such as a port that is no number
        pass
    raise ValueError(f"{url} is no URL: write for example http://localhost:8000/webhooks/workos")


@dataclass
class Endpoint:
    """A receiver of webhooks. `events` are the types that it receives; None or an empty list means all."""

    id: str
    url: str
    secret: str
    events: list[str] | None = None
    enabled: bool = True
    created_at: str = ""
    updated_at: str = ""

    def as_json(self, *, with_secret: bool) -> JSON:
        """The endpoint as the API returns it; the secret is returned only at creation."""
        return {
            "object": "webhook_endpoint",
            "id": self.id,
            "endpoint_url": self.url,
            "secret": self.secret if with_secret else "*" * 8,
            "status": "enabled" if self.enabled else "disabled",
            "events": self.events or [],
            "created_at": self.created_at,
            "updated_at": self.updated_at,
        }


@dataclass
class Record:
    """The deliveries of one event. `statuses` are those of its attempts (0: no answer), without forgeries."""

    lost: bool = False
    acknowledged: bool = False
    statuses: list[int] = field(default_factory=list)


@dataclass
class Counters:
    """Totals since the start. `sent` counts attempts. Forged deliveries are counted separately."""

    generated: int = 0
    lost: int = 0
    sent: int = 0
    acknowledged: int = 0  # events, each once
    duplicates_sent: int = 0
    retried: int = 0
    refused: int = 0  # answers other than 2xx
    unanswered: int = 0  # time-outs and failed connections
    given_up: int = 0  # deliveries whose retries ran out
    forged: int = 0
    forged_refused: int = 0  # answered 401
    forged_accepted: int = 0  # answered 2xx: must stay 0
    pending: int = 0  # deliveries, forged ones too, that are waiting or in progress


@dataclass(eq=False)
class _Job:
    """One delivery of one event to one endpoint, with its retries."""

    event_id: str
    body: bytes
    endpoint: Endpoint
    delay: float = 0.0
    hold: int = 0  # number of later deliveries to wait for
    duplicate: bool = False
    forged: bool = False
    signature: str | None = None
    attempt: int = 0


class Deliveries:
    """Sends what its world emits to its endpoints, on the server's event loop. Methods are thread-safe."""

    def __init__(self, world: World, knobs: Knobs, seed: int = 0) -> None:
        self.world = world
        self.knobs = knobs
        self.endpoints: dict[str, Endpoint] = {}
        self.counters = Counters()
        self.records: dict[str, Record] = {}
        self._random = Random(f"{seed}-delivery")
        self._changed = threading.Condition()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sessions: dict[bool, aiohttp.ClientSession] = {}  # by Knobs.keep_alive
        self._held: list[_Job] = []
        self._ready: deque[_Job] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        world.subscribe(self._plan)
        knobs.listen(self.kick)

    # Public methods

    def add_endpoint(self, url: str, secret: str | None = None, events: list[str] | None = None) -> Endpoint:
        """Send new events to `url` from now on. Without a `secret`, a random one is used.

        Raises:
            ValueError: `url` is not a URL.
        """
        checked_url(url)
        at = self.world.stamp()
        made = secret or f"whsec_{self._random.getrandbits(128):032x}"
        endpoint = Endpoint(self.world.new_id("we"), url, made, events, True, at, at)
        self.endpoints[endpoint.id] = endpoint
        return endpoint

    def remove_endpoint(self, endpoint_id: str) -> None:
        """Send nothing more to an endpoint, and drop its waiting deliveries."""
        self.endpoints.pop(endpoint_id, None)

    def wait_for(self, condition: Callable[[Counters], bool], timeout: float = 10.0) -> None:
        """Return once the counters meet `condition`; raise TimeoutError after `timeout` seconds."""
        with self._changed:
            if not self._changed.wait_for(lambda: condition(self.counters), timeout):
                raise TimeoutError(f"not within {timeout} s: {self.counters}")

    def wait_idle(self, timeout: float = 10.0) -> None:
        """Return once no delivery or retry is waiting; raise TimeoutError after `timeout` seconds."""
        self.wait_for(lambda counters: counters.pending == 0, timeout)

    def drain(self, timeout: float = 10.0) -> None:
        """Send held deliveries at once, then wait as `wait_idle` does."""
        self._call(self._release_all)
        self.wait_idle(timeout)

    def send_again(self, event_id: str) -> None:
        """Deliver a logged event to every endpoint again, like a late retry. This delivery is never lost.

        Raises WorldError 404 if there is no such event.
        """
        with self.world.lock:
            event = self.world.event(event_id)
        with self._changed:
            self.records.setdefault(event_id, Record())
        self._start([_Job(event_id, encode(event), each) for each in self._wanting(event["event"])])

    def progress(self) -> JSON:
        """Return the counters as JSON."""
        with self._changed:
            return asdict(self.counters)

    def kick(self) -> None:
        """Check again whether deliveries can be sent."""
        self._call(self._pump)

    # Planning, in the thread that emits

    def _wanting(self, kind: str) -> list[Endpoint]:
        return [e for e in list(self.endpoints.values()) if e.enabled and (not e.events or kind in e.events)]

    def _plan(self, event: JSON) -> None:
        """Plan the deliveries of an event, by the knobs. All random choices are made here, in the order of events."""
        knobs, random = self.knobs, self._random
        lost = random.random() < knobs.loss or (knobs.lose is not None and knobs.lose(event))
        with self._changed:
            self.records[event["id"]] = Record(lost=lost)
            self.counters.generated += 1
            self.counters.lost += lost
        jobs: list[_Job] = []
        for endpoint in self._wanting(event["event"]):
            body = encode(event)
            if not lost:
                hold = random.randint(1, knobs.reorder_window) if random.random() < knobs.reordering else 0
                jobs.append(_Job(event["id"], body, endpoint, random.uniform(*knobs.delay), hold))
                if random.random() < knobs.duplicates:
                    # Half of the duplicates are sent at the same time, half later.
                    later = random.choice([0, random.randint(1, knobs.reorder_window)])
                    again = _Job(event["id"], body, endpoint, random.uniform(*knobs.delay), later, duplicate=True)
                    jobs.append(again)
            if random.random() < knobs.wrong_signatures:
                jobs.append(self._forge(event, body, endpoint))
        self._start(jobs)

    def _forge(self, event: JSON, body: bytes, endpoint: Endpoint) -> _Job:
        """Return a forged delivery: a wrong signature, a changed body, or an event that the forger made up."""
        now = int(time.time() * 1000)
        kind = self._random.choice(["spoiled", "changed", "invented"])
        signature = sign(body, endpoint.secret, now)
        if kind == "spoiled":
            signature = signature[:-1] + ("0" if signature[-1] != "0" else "1")
        elif kind == "changed":
            body = encode({**event, "created_at": "2099-01-01T00:00:00.000Z"})
        else:
            ids = (f"{prefix}_FORGED{self._random.getrandbits(80):020X}" for prefix in ("om", "org", "user", "event"))
            membership = shapes.membership(
                next(ids), next(ids), next(ids), event["created_at"], roles=["admin"], status="active"
            )
            made_up = shapes.event(next(ids), "organization_membership.created", membership, event["created_at"])
            body = encode(made_up)
            signature = sign(body, "not the secret", now)
        return _Job(event["id"], body, endpoint, forged=True, signature=signature)

    def _start(self, jobs: list[_Job]) -> None:
        if jobs and self._loop is not None:
            with self._changed:
                self.counters.pending += len(jobs)
            self._call(self._enqueue, jobs)

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        """Run a function on the event loop; do nothing if the loop has ended."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *arguments)

    # Sending, on the event loop

    def open(self) -> None:
        """Start sending. Called on the event loop."""
        self._loop = asyncio.get_running_loop()
        for keep in (True, False):
            connector = aiohttp.TCPConnector(limit=0, force_close=not keep)
            self._sessions[keep] = aiohttp.ClientSession(connector=connector)

    async def close(self) -> None:
        """Stop at once. Waiting deliveries are dropped."""
        self._loop = None
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for session in self._sessions.values():
            await session.close()

    def _enqueue(self, jobs: list[_Job]) -> None:
        for job in jobs:
            for held in [*self._held]:
                held.hold -= 1
                if held.hold <= 0:
                    self._release(held)
            if job.hold:
                self._held.append(job)
                self._later(self.knobs.flush_after, self._release, job)
            else:
                self._push_after(job, job.delay)
        self._pump()

    def _release(self, job: _Job) -> None:
        if job in self._held:
            self._held.remove(job)
            self._push_after(job, job.delay)

    def _release_all(self) -> None:
        for job in [*self._held]:
            self._release(job)

    def _later(self, seconds: float, function: Callable[[_Job], None], job: _Job) -> None:
        if self._loop is not None:
            self._loop.call_later(seconds, function, job)

    def _push_after(self, job: _Job, seconds: float) -> None:
        if seconds > 0:
            self._later(seconds, self._push, job)
        else:
            self._push(job)

    def _push(self, job: _Job) -> None:
        self._ready.append(job)
        self._pump()

    def _pump(self) -> None:
        """Start as many deliveries as `concurrency` allows."""
        while self._loop and self._ready and not self.knobs.paused and len(self._tasks) < self.knobs.concurrency:
            task = self._loop.create_task(self._send(self._ready.popleft()))
            self._tasks.add(task)
            task.add_done_callback(self._sent)

    def _sent(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        self._pump()

    async def _send(self, job: _Job) -> None:
        """Make one attempt, count its result, and schedule a retry if one is due."""
        if job.endpoint.id not in self.endpoints:
            self._finish()
            return
        if job.signature is None or (self.knobs.retry_signs_again and not job.forged):
            job.signature = sign(job.body, job.endpoint.secret, int(time.time() * 1000))
        status = await self._post(job)
        good = 200 <= status < 300
        with self._changed:
            counters = self.counters
            if job.forged:
                counters.forged += 1
                counters.forged_refused += status == 401
                counters.forged_accepted += good
            else:
                record = self.records[job.event_id]
                record.statuses.append(status)
                counters.sent += 1
                counters.duplicates_sent += job.duplicate and job.attempt == 0
                counters.retried += job.attempt > 0
                counters.acknowledged += good and not record.acknowledged
                counters.refused += status != 0 and not good
                counters.unanswered += status == 0
                record.acknowledged = record.acknowledged or good
                counters.given_up += not good and job.attempt >= self.knobs.retries
        if good or job.forged or job.attempt >= self.knobs.retries:
            self._finish()
            return
        job.attempt += 1
        self._push_after(job, self.knobs.retry_base * 2 ** (job.attempt - 1))
        with self._changed:
            self._changed.notify_all()

    async def _post(self, job: _Job) -> int:
        """Return the status of the answer; 0 if there was none in time."""
        headers = {"Content-Type": "application/json", "WorkOS-Signature": job.signature or ""}
        timeout = aiohttp.ClientTimeout(total=self.knobs.timeout)
        session = self._sessions[self.knobs.keep_alive]
        try:
            async with session.post(
                job.endpoint.url, data=job.body, headers=headers, timeout=timeout, allow_redirects=False
            ) as answer:
                await answer.read()
                return answer.status
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):  # ValueError: not a host name
            return 0

    def _finish(self) -> None:
        with self._changed:
            self.counters.pending -= 1
            self._changed.notify_all()
