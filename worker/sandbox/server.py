"""The sandbox as a running server."""

import asyncio
import threading
import time
from collections.abc import Callable
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Self

from aiohttp import web

from worker.sandbox import control
from worker.sandbox.knobs import Knobs
from worker.sandbox.service import API_KEY, Service

if TYPE_CHECKING:
    from workos import WorkOSClient


class _Loop(asyncio.SelectorEventLoop):
    """An event loop on the real clock, so that it goes on while a test freezes time."""

    _monotonic = staticmethod(time.monotonic)

    def time(self) -> float:
        """Return the time in seconds since any moment."""
        return self._monotonic()


class Sandbox(Service):
    """A WorkOS on 127.0.0.1, in a thread of its own. Use it as a context manager, or `start` and `stop` it."""

    def __init__(
        self,
        *,
        seed: int = 0,
        api_key: str = API_KEY,
        port: int = 0,
        clock: Callable[[], datetime] | None = None,
        knobs: Knobs | None = None,
    ) -> None:
        super().__init__(seed=seed, api_key=api_key, clock=clock, knobs=knobs)
        self.port = port
        self._clients: list[WorkOSClient] = []
        self._loop: _Loop | None = None
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = RuntimeError("the sandbox did not start")

    def start(self) -> Self:
        """Start serving; returns when calls are answered."""
        ready = threading.Event()
        self.serving = True
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
            self.serving = False

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
