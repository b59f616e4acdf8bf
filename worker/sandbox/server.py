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


CLIENT_ID = "client_sandbox"
ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared, not bound
"""The addresses at which programs on this machine reach a server that listens on all addresses."""


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that uses the real clock, so that it keeps running while a test freezes time."""

    _monotonic = staticmethod(time.monotonic)

    def time(self) -> float:
        """Return the time in seconds, by a monotonic clock."""
        return self._monotonic()


class Sandbox(Service):
    """A running sandbox, in a thread of its own. Use it as a context manager, or `start` and `stop` it.

    Args:
        seed: seed of all random choices.
        api_key: the key that the API accepts; it starts with `sk_test_`.
        host: the address to listen on.
        port: the port to listen on; 0 for any free port, whose number the attribute `port` has after the start.
        clock: the environment's time (aware); signatures carry `time.time()`, which receivers check.
        knobs: see Knobs.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        api_key: str = API_KEY,
        host: str = "127.0.0.1",
        port: int = 0,
        clock: Callable[[], datetime] | None = None,
        knobs: Knobs | None = None,
    ) -> None:
        super().__init__(seed=seed, api_key=api_key, clock=clock, knobs=knobs)
        self.host = host
        self.port = port
        self._clients: list[WorkOSClient] = []
        self._loop: _Loop | None = None
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = RuntimeError("the sandbox did not start")

    def start(self) -> Self:
        """Start serving; return once calls are answered."""
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
        """Stop playing, sending webhooks and serving, at once."""
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
        """The URL of the API, without a slash at the end."""
        host = ANY.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def settings(self) -> dict[str, str]:
        """The environment variables that make WorkOS's SDKs and workos-sync use this sandbox."""
        return {"WORKOS_BASE_URL": self.base_url, "WORKOS_API_KEY": self.api_key, "WORKOS_CLIENT_ID": CLIENT_ID}

    def _run(self, loop: _Loop, ready: threading.Event) -> None:
        """Run the server. This is the function of its thread."""
        app = web.Application(client_max_size=2**24)
        control.add_routes(app, self)
        self.gate.add_routes(app)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(self._open(runner))
            self._failure = None
        except OSError as error:  # for example, the port is in use; `start` raises it in the thread that waits
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
        site = web.TCPSite(runner, self.host, self.port)
        await site.start()
        self.port = runner.addresses[0][1]

    async def _close(self, runner: web.AppRunner) -> None:
        for environment in self.gate.environments.values():
            await environment.deliveries.close()
        await runner.cleanup()

    def client(self, *, api_key: str | None = None, max_retries: int = 3) -> "WorkOSClient":
        """Return a client of WorkOS's SDK for this sandbox; `stop` closes it."""
        # Imported here, because the SDK takes seconds to import and the sandbox itself does not need it.
        from workos import WorkOSClient  # noqa: PLC0415

        made = WorkOSClient(
            api_key=api_key or self.api_key,
            client_id=CLIENT_ID,
            base_url=self.base_url,
            request_timeout=10,
            max_retries=max_retries,
        )
        self._clients.append(made)
        return made
