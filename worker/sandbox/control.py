"""Control endpoints under /sandbox, for other processes: JSON in, JSON out, no key."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

from aiohttp import web

from worker.sandbox import scenario
from worker.sandbox.service import Service
from worker.sandbox.world import OPERATIONS, WorldError

JSON = dict[str, Any]


def operate(sandbox: Service, operation: str, arguments: JSON) -> Any:
    """Do one operation of the world by name. Raises ValueError for an unknown one, WorldError if refused."""
    if operation not in OPERATIONS:
        raise ValueError(f"unknown operation: {operation!r}; there are {', '.join(sorted(OPERATIONS))}")
    try:
        return getattr(sandbox.world, operation)(**arguments)
    except TypeError as error:
        raise ValueError(str(error)) from error


def add_routes(app: web.Application, sandbox: Service) -> None:
    """Serve the control endpoints of `sandbox`."""

    def knobs(body: JSON) -> Any:
        sandbox.knobs.update(body)
        return sandbox.knobs.as_json()

    def endpoints(body: JSON) -> Any:
        made = sandbox.deliveries.add_endpoint(body["url"], body.get("secret"), body.get("events"))
        return {"id": made.id, "url": made.url, "secret": made.secret, "events": made.events}

    def play(body: JSON) -> Any:
        sandbox.start_playing(**body)
        return sandbox.progress()

    def stop(_: JSON) -> Any:
        sandbox.stop_playing()
        return sandbox.progress()

    def faults(body: JSON) -> Any:
        if body.get("kind") == "clear":
            sandbox.faults.clear()
        else:
            sandbox.faults.add_json(body)
        return {}

    def operations(body: JSON) -> Any:
        arguments = {name: value for name, value in body.items() if name not in ("operation", "silently")}
        with sandbox.world.silently() if body.get("silently") else nullcontext():
            return operate(sandbox, body["operation"], arguments)

    def drain(body: JSON) -> Any:
        sandbox.deliveries.drain(float(body.get("timeout", 60)))
        return sandbox.progress()

    def calls(_: JSON) -> Any:
        return {f"{method} {route}": number for (method, route), number in sorted(sandbox.calls.items())}

    app.router.add_put("/sandbox/knobs", _serve(knobs))
    app.router.add_get("/sandbox/knobs", _serve(lambda _: sandbox.knobs.as_json()))
    app.router.add_post("/sandbox/endpoints", _serve(endpoints))
    app.router.add_post("/sandbox/play", _serve(play))
    app.router.add_post("/sandbox/populate", _serve(lambda body: _populate(sandbox, **body)))
    app.router.add_post("/sandbox/stop", _serve(stop))
    app.router.add_post("/sandbox/drain", _serve(drain))
    app.router.add_post("/sandbox/operations", _serve(operations))
    app.router.add_post("/sandbox/faults", _serve(faults))
    app.router.add_get("/sandbox/progress", _serve(lambda _: sandbox.progress()))
    app.router.add_get("/sandbox/truth", _serve(lambda _: sandbox.world.truth()))
    app.router.add_get("/sandbox/records", _serve(lambda _: _records(sandbox)))
    app.router.add_get("/sandbox/calls", _serve(calls))


def _records(sandbox: Service) -> Any:
    return {event_id: asdict(record) for event_id, record in list(sandbox.deliveries.records.items())}


def _populate(sandbox: Service, **body: Any) -> Any:
    scenario.populate(sandbox.world, **body)
    return sandbox.progress()


def _serve(function: Callable[[JSON], Any]) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """Run `function(body)` in a thread, since it may wait; what it refuses is answered as 4xx."""

    async def serve(request: web.Request) -> web.StreamResponse:
        try:
            body = await request.json() if request.can_read_body else {}
            return web.json_response(await asyncio.to_thread(function, body))
        except WorldError as refusal:
            return web.json_response(refusal.body, status=refusal.status)
        except TimeoutError as error:
            return web.json_response({"message": str(error)}, status=504)
        except (KeyError, TypeError, ValueError) as error:
            return web.json_response({"message": f"{type(error).__name__}: {error}"}, status=400)

    return serve
