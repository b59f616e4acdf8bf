"""Control endpoints under /sandbox, for other processes. They take and return JSON and need no key.

docs/development.md describes them.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from dataclasses import asdict
from operator import itemgetter
from typing import Any

from aiohttp import web
from pydantic import ValidationError, validate_call

from worker.sandbox import scenario
from worker.sandbox.problems import problems
from worker.sandbox.service import Service
from worker.sandbox.world import OPERATIONS, WorldError

JSON = dict[str, Any]


class Controls:
    """The control endpoints: a method for each. Its parameters are the fields of the request's body."""

    def __init__(self, sandbox: Service) -> None:
        self.sandbox = sandbox

    def show_knobs(self) -> JSON:
        """Return all knobs."""
        return self.sandbox.knobs.as_json()

    def set_knobs(self, **knobs: Any) -> JSON:
        """Set some knobs; return all."""
        self.sandbox.knobs.update(knobs)
        return self.show_knobs()

    def add_fault(self, **rule: Any) -> JSON:
        """Make calls of the API fail: see Faults.add_json."""
        self.sandbox.faults.add_json(rule)
        return {}

    def clear_faults(self) -> JSON:
        """Remove all faults."""
        self.sandbox.faults.clear()
        return {}

    def add_endpoint(self, url: str, secret: str | None = None, events: list[str] | None = None) -> JSON:
        """Send webhooks to a URL: see Deliveries.add_endpoint."""
        made = self.sandbox.deliveries.add_endpoint(url, secret, events)
        return {"id": made.id, "url": made.url, "secret": made.secret, "events": made.events}

    def operate(self, operation: str, silently: bool = False, **arguments: Any) -> Any:
        """Perform one of OPERATIONS, without an event if `silently`; return the object."""
        if operation not in OPERATIONS:
            raise ValueError(f"unknown operation: {operation!r}; there are {', '.join(sorted(OPERATIONS))}")
        with self.sandbox.world.silently() if silently else nullcontext():
            return validate_call(getattr(self.sandbox.world, operation))(**arguments)

    def send_event(self, event: str, data: JSON) -> JSON:
        """Emit an event of this type, which changes nothing in the sandbox; return it."""
        return self.sandbox.world.emit(event, data) or {}

    def send_again(self, event_id: str) -> JSON:
        """Deliver an event again: see Deliveries.send_again."""
        self.sandbox.deliveries.send_again(event_id)
        return self.progress()

    def play(self, events: int, companies: int = 12, seed: int | None = None, rate: float | None = None) -> JSON:
        """Perform random operations in the background: see Service.play."""
        self.sandbox.start_playing(events, companies=companies, seed=seed, rate=rate)
        return self.progress()

    def stop(self) -> JSON:
        """Stop playing."""
        self.sandbox.stop_playing()
        return self.progress()

    def populate(
        self, organizations: int, members: int, seed: int = 0, users: int | None = None, quiet: bool = True
    ) -> JSON:
        """Create many organizations: see scenario.populate."""
        world = self.sandbox.world
        scenario.populate(world, organizations=organizations, members=members, seed=seed, users=users, quiet=quiet)
        return self.progress()

    def drain(self, timeout: float = 60) -> JSON:
        """Wait until no delivery is waiting or in progress."""
        self.sandbox.deliveries.drain(timeout)
        return self.progress()

    def progress(self) -> JSON:
        """Return the counters: see Service.progress."""
        return self.sandbox.progress()

    def truth(self) -> JSON:
        """Return all objects."""
        return self.sandbox.world.truth()

    def records(self) -> JSON:
        """Return the deliveries of each event, by its id."""
        return {event_id: asdict(record) for event_id, record in list(self.sandbox.deliveries.records.items())}

    def calls(self) -> JSON:
        """Return how often each route of the API was called."""
        return {f"{method} {route}": number for (method, route), number in sorted(self.sandbox.calls.items())}


def add_routes(app: web.Application, sandbox: Service) -> None:
    """Serve the control endpoints of `sandbox`."""
    controls = Controls(sandbox)
    served: dict[tuple[str, str], Callable[..., Any]] = {
        ("GET", "knobs"): controls.show_knobs,
        ("PUT", "knobs"): controls.set_knobs,
        ("POST", "faults"): controls.add_fault,
        ("DELETE", "faults"): controls.clear_faults,
        ("POST", "endpoints"): controls.add_endpoint,
        ("POST", "operations"): controls.operate,
        ("POST", "events"): controls.send_event,
        ("POST", "send-again"): controls.send_again,
        ("POST", "play"): controls.play,
        ("POST", "stop"): controls.stop,
        ("POST", "populate"): controls.populate,
        ("POST", "drain"): controls.drain,
        ("GET", "progress"): controls.progress,
        ("GET", "truth"): controls.truth,
        ("GET", "records"): controls.records,
        ("GET", "calls"): controls.calls,
    }
    for (method, path), function in served.items():
        app.router.add_route(method, f"/sandbox/{path}", _for_programs(_serve(validate_call(function))))
    listed = ", ".join(f"{method} /sandbox/{path}" for method, path in sorted(served, key=itemgetter(1)))

    async def refuse_unknown(request: web.Request) -> web.StreamResponse:
        return _refuse(404, f"there is no {request.method} {request.path}; there are {listed}")

    for path in ("/sandbox", "/sandbox/{rest:.*}"):
        app.router.add_route("*", path, _for_programs(refuse_unknown))


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def _for_programs(handler: Handler) -> Handler:
    """Refuse requests from web pages in a browser, because anybody may have written the page."""

    async def serve(request: web.Request) -> web.StreamResponse:
        if "Origin" in request.headers:
            return _refuse(403, "requests from web pages are refused")
        return await handler(request)

    return serve


def _serve(function: Callable[..., Any]) -> Handler:
    """Run `function(**body)` in a thread, because it may wait; answer 4xx if it refuses the body."""

    async def serve(request: web.Request) -> web.StreamResponse:
        try:
            body = await request.json() if request.can_read_body else {}
            if not isinstance(body, dict):
                return _refuse(400, "the body must be a JSON object")
            return web.json_response(await asyncio.to_thread(function, **body))
        except WorldError as refusal:
            return web.json_response(refusal.body, status=refusal.status)
        except TimeoutError as error:
            return _refuse(504, str(error))
        except ValidationError as error:
            return _refuse(400, problems(error))
        except (AttributeError, TypeError, ValueError) as error:  # such as a number where an address belongs
            return _refuse(400, str(error))

    return serve


def _refuse(status: int, message: str) -> web.Response:
    return web.json_response({"message": message}, status=status)
