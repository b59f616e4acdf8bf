"""The steps before each API call is answered: count it, call a hook, delay, check key and limits, inject faults."""

import asyncio
import json
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from email.utils import format_datetime
from itertools import count
from typing import Any

from aiohttp import web

from worker.sandbox import shapes
from worker.sandbox.api import ROUTES, Call, Environment, Handler, Reply, answer
from worker.sandbox.faults import Fault, Faults
from worker.sandbox.knobs import Knobs

JSON = dict[str, Any]
Hook = Callable[[str, str, Mapping[str, str]], object]


class Limiter:
    """Rate limits as sliding windows of calls."""

    def __init__(self) -> None:
        self._windows: dict[object, deque[float]] = {}

    def wait(self, key: object, limit: tuple[int, float], now: float) -> float:
        """Count a call at `now` (seconds, monotonic) and return 0, or return the seconds to wait."""
        calls, seconds = limit
        window = self._windows.setdefault(key, deque())
        while window and window[0] <= now - seconds:
            window.popleft()
        if len(window) >= calls:
            return window[0] + seconds - now if window else seconds
        window.append(now)
        return 0.0


class Gate:
    """The API as aiohttp handlers. `on_request(method, path, query)` runs in a thread before each answer."""

    # Kept in the class, where freezegun does not replace it: limits are about real time.
    _monotonic = staticmethod(time.monotonic)

    def __init__(self, knobs: Knobs, faults: Faults, clock: Callable[[], datetime]) -> None:
        self.knobs = knobs
        self.faults = faults
        self.clock = clock
        self.environments: dict[str, Environment] = {}
        self.on_request: Hook | None = None
        self.calls: Counter[tuple[str, str]] = Counter()  # by method and route, e.g. ("GET", "/organizations/{id}")
        self._lock = threading.Lock()
        self._limiter = Limiter()
        self._numbers = count(1)
        self._pages: dict[object, tuple[int, str]] = {}

    def add_routes(self, app: web.Application) -> None:
        """Serve the API; answer 404 to unknown paths."""
        for method, path, handler in ROUTES:
            app.router.add_route(method, path, self._serve(path, handler))
        app.router.add_route("*", "/{rest:.*}", self._serve("unknown", None))

    def total(self, method: str = "", route: str = "") -> int:
        """Return the number of calls with this method, and a route that starts with `route` (empty: any)."""
        with self._lock:
            found = self.calls.items()
            return sum(n for (m, r), n in found if m == (method or m) and r.startswith(route))

    def _serve(self, route: str, handler: Handler | None) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def serve(request: web.Request) -> web.StreamResponse:
            with self._lock:
                self.calls[request.method, route] += 1
            query = _query_of(request)
            if self.on_request is not None:
                await asyncio.to_thread(self.on_request, request.method, request.path, query)
            if self.knobs.latency > 0:
                await asyncio.sleep(self.knobs.latency)
            call = Call(request.match_info, query, await _body_of(request))
            status, body, headers = self._decide(request, handler, call)
            if status == 0 and request.transport is not None:
                request.transport.close()
            return self._response(status or 500, body, headers)

        return serve

    def _decide(self, request: web.Request, handler: Handler | None, call: Call) -> tuple[int, Any, dict[str, str]]:
        """Return status, body and further headers of the answer; status 0 closes the connection."""
        environment = self.environments.get(request.headers.get("Authorization", "").removeprefix("Bearer "))
        if environment is None:
            return 401, shapes.error("Unauthorized"), {}
        wait = self._wait(request, environment) if self.knobs.rate_limits else 0.0
        if wait > 0:
            # At least 1: a Retry-After of 0 would invite the next call before the window has moved.
            return (
                429,
                shapes.error("Too many requests", "rate_limited"),
                {"Retry-After": str(math.ceil(wait))},
            )
        fault = self.faults.take(request.method, request.path, self._page(request, call.query), request.query_string)
        if handler is None:
            return 404, shapes.error(f"Cannot {request.method} {request.path}", error="Not Found"), {}
        if fault is not None:
            return _faulty(fault, handler, environment, call)
        return *answer(handler, environment, call), {}

    def _wait(self, request: web.Request, environment: Environment) -> float:
        """Return the seconds until the documented limits allow this call; 0.0: now."""
        now = self._monotonic()
        wait = self._limiter.wait(request.remote, self.knobs.address_limit, now)
        if wait == 0.0 and request.path.startswith("/user_management/"):
            reading = request.method == "GET"
            limit = self.knobs.user_reads_limit if reading else self.knobs.user_writes_limit
            wait = self._limiter.wait((id(environment), reading), limit, now)
        return wait

    def _page(self, request: web.Request, query: Mapping[str, str]) -> int:
        """Return the number, from 1, of the page that a call asks for. A repeated request does not count."""
        after = query.get("after", "")
        rest = tuple(sorted((name, value) for name, value in query.items() if name != "after"))
        key = (request.path, rest)
        page, last = self._pages.get(key, (1, "")) if after else (1, "")
        page += after != last
        self._pages[key] = (page, after)
        return page

    def _response(self, status: int, body: Any, headers: dict[str, str]) -> web.Response:
        raw = b"" if body is None else body
        content = raw if isinstance(raw, bytes) else json.dumps(raw, separators=(",", ":")).encode()
        common = {
            "Date": format_datetime(self.clock(), usegmt=True) if self.knobs.dated else "",
            "Server": "workos-sync sandbox",
            "X-Request-ID": f"req_{next(self._numbers):08d}",
        }
        if body is not None:
            common["Content-Type"] = "application/json"
        return web.Response(status=status, body=content, headers={**common, **headers})


def _query_of(request: web.Request) -> dict[str, str]:
    """Return the query. The values of a repeated name (`statuses=a&statuses=b`) are joined by commas."""
    joined: dict[str, str] = {}
    for name, value in request.query.items():
        plain = name.removesuffix("[]")
        joined[plain] = f"{joined[plain]},{value}" if plain in joined else value
    return joined


async def _body_of(request: web.Request) -> JSON:
    try:
        body = json.loads(await request.read() or b"{}")
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _faulty(fault: Fault, handler: Handler, environment: Environment, call: Call) -> tuple[int, Any, dict[str, str]]:
    """Return the answer to a call into which a fault is injected."""
    reply: Reply = (200, None)
    if fault.kind == "answer":
        return fault.status, fault.body, {"Content-Type": fault.content_type, "Location": "/elsewhere"}
    if fault.kind != "fail" or fault.after_effect:
        reply = answer(handler, environment, call)
    if fault.kind == "fail":
        headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
        if fault.status == 404:
            return 404, shapes.error("Object not found: 'injected'.", "entity_not_found"), headers
        return fault.status, shapes.error("A fault injected into the sandbox", "injected"), headers
    if fault.kind == "empty":
        return 200, shapes.listing([], None, None), {}
    status, body = reply
    if fault.fields is not None:
        return status, {**(body or {}), **fault.fields}, {}
    if fault.change is not None and body is not None and len(body.get("data", [])) > fault.item:
        items: list[Any] = [*body["data"]]
        items[fault.item] = fault.change(items[fault.item])
        body = {**body, "data": items}
    return status, body, {}
