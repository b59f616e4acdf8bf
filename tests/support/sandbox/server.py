"""The sandbox as a running server."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from aiohttp import web

from . import control, scenario
from .api import Environment
from .delivery import Deliveries, Endpoint
from .faults import Faults
from .gate import Gate, Hook
from .knobs import Knobs
from .world import World

if TYPE_CHECKING:
    from workos import WorkOSClient

JSON = dict[str, Any]

API_KEY = "sk_test_sandbox"


class _Loop(asyncio.SelectorEventLoop):
    """An event loop on the real clock, so that it goes on while a test freezes time."""

    _monotonic = staticmethod(time.monotonic)

    def time(self) -> float:
        return self._monotonic()


class Sandbox:
    """A WorkOS on 127.0.0.1, in a thread of its own. Use it as a context manager, or `start` and `stop` it.

    `clock` is the environment's time (aware); signatures carry `time.time()`, which receivers check.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        api_key: str = API_KEY,
        port: int = 0,
        clock: Callable[[], datetime] | None = None,
        knobs: Knobs | None = None,
    ) -> None:
        self.seed = seed
        self.api_key = api_key
        self.port = port
        self.knobs = knobs or Knobs()
        self.faults = Faults()
        self.world = World(seed, clock, self.knobs)
        self.deliveries = Deliveries(self.world, self.knobs, seed)
        self.gate = Gate(self.knobs, self.faults, self.world.now)
        self.gate.environments[api_key] = Environment(self.world, self.deliveries)
        self._clock = clock
        self._clients: list[WorkOSClient] = []
        self._loop: _Loop | None = None
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = RuntimeError("the sandbox did not start")
        self._stop_playing = threading.Event()
        self._player: threading.Thread | None = None

    # Running

    def start(self) -> Self:
        """Start serving; returns when calls are answered."""
        ready = threading.Event()
        self._loop = _Loop()
        self._thread = threading.Thread(target=self._run, args=(self._loop, ready), name="sandbox", daemon=True)
        self._thread.start()
        ready.wait()
        if self._failure is not None:
            raise self._failure
        return self

    def stop(self) -> None:
        """Stop playing, sending and serving, at once."""
        self.stop_playing()
        while self._clients:
            self._clients.pop().close()
        if self._loop is not None and self._thread is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def base_url(self) -> str:
        """Where the API is, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    def _run(self, loop: _Loop, ready: threading.Event) -> None:
        """The server's thread."""
        app = web.Application(client_max_size=2**24)
        control.add_routes(app, self)
        self.gate.add_routes(app)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(self._open(runner))
            self._failure = None
        except OSError as error:  # such as a port that is taken: reported to the thread that waits in start()
            self._failure = error
        finally:
            ready.set()
        if self._failure is None:
            loop.run_forever()
        loop.run_until_complete(self._close(runner))
        loop.close()

    async def _open(self, runner: web.AppRunner) -> None:
        for environment in self.gate.environments.values():
            environment.deliveries.open()
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self.port)
        await site.start()
        self.port = runner.addresses[0][1]

    async def _close(self, runner: web.AppRunner) -> None:
        for environment in self.gate.environments.values():
            await environment.deliveries.close()
        await runner.cleanup()

    # Using

    @property
    def calls(self) -> "Counter[tuple[str, str]]":
        """How often each (method, route) was called, e.g. ("GET", "/organizations/{id}")."""
        return self.gate.calls

    @property
    def on_request(self) -> Hook | None:
        """Called as (method, path, query) before each answer, in a thread; may block or change the world."""
        return self.gate.on_request

    @on_request.setter
    def on_request(self, hook: Hook | None) -> None:
        self.gate.on_request = hook

    def add_environment(self, api_key: str, world: World | None = None) -> Environment:
        """Let a further key open an environment of its own, empty unless `world` is given; before `start`."""
        if self._loop is not None:
            raise RuntimeError("add environments before the sandbox starts")
        made = world or World(self.seed + len(self.gate.environments), self._clock, self.knobs)
        self.gate.environments[api_key] = Environment(made, Deliveries(made, self.knobs, self.seed))
        return self.gate.environments[api_key]

    def add_endpoint(self, url: str, secret: str | None = None, events: list[str] | None = None) -> Endpoint:
        """Send webhooks to `url`; see Deliveries.add_endpoint."""
        return self.deliveries.add_endpoint(url, secret, events)

    def client(self, *, api_key: str | None = None, max_retries: int = 3) -> "WorkOSClient":
        """A real SDK client of this sandbox; `stop` closes it."""
        # Here, because the SDK takes seconds to import and the sandbox as a process does without it.
        from workos import WorkOSClient  # noqa: PLC0415

        made = WorkOSClient(
            api_key=api_key or self.api_key,
            client_id="client_sandbox",
            base_url=self.base_url,
            request_timeout=10,
            max_retries=max_retries,
        )
        self._clients.append(made)
        return made

    def play(self, events: int, *, companies: int = 12, seed: int | None = None, rate: float | None = None) -> int:
        """Do random operations until about `events` events were emitted; returns how many there were."""
        chosen = self.seed if seed is None else seed
        return scenario.play(self.world, events, companies=companies, seed=chosen, rate=rate, stop=self._stop_playing)

    def start_playing(self, events: int, **options: Any) -> None:
        """Play in the background; ValueError if that is going on already."""
        if self.playing:
            raise ValueError("already playing")
        self._stop_playing.clear()
        self._player = threading.Thread(target=self.play, args=(events,), kwargs=options, name="player", daemon=True)
        self._player.start()

    def stop_playing(self) -> None:
        """Stop playing after the current operation."""
        self._stop_playing.set()
        if self._player is not None:
            self._player.join()
        self._stop_playing.clear()

    @property
    def playing(self) -> bool:
        """Whether operations are going on in the background."""
        return self._player is not None and self._player.is_alive()

    def progress(self) -> JSON:
        """The counters of the webhooks, whether playing goes on, the numbers of events and API calls."""
        return {
            **self.deliveries.progress(),
            "playing": self.playing,
            "events": len(self.world.events),
            "calls": self.gate.total(),
        }
