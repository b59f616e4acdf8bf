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
"""How programs on this machine reach the addresses that mean all."""


class _Loop(asyncio.SelectorEventLoop):
    """An event loop on the real clock, so that it goes on while a test freezes time."""

    _monotonic = staticmethod(time.monotonic)

    def time(self) -> float:
        """Return the time in seconds since any moment."""
        return self._monotonic()


class Sandbox(Service):
    """A running sandbox, in a thread of its own. Use it as a context manager, or `start` and `stop` it.

    Args:
        seed: of all random choices.
        api_key: the key that the API asks for; it begins with `sk_test_`.
        host: the address to listen on.
        port: 0 for any free one, which `port` then is after the start.
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
        host = ANY.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def settings(self) -> dict[str, str]:
        """The environment variables that lead WorkOS's SDKs, and workos-sync, to this sandbox."""
        return {"WORKOS_BASE_URL": self.base_url, "WORKOS_API_KEY": self.api_key, "WORKOS_CLIENT_ID": CLIENT_ID}

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
        site = web.TCPSite(runner, self.host, self.port)
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
            client_id=CLIENT_ID,
            base_url=self.base_url,
            request_timeout=10,
            max_retries=max_retries,
        )
        self._clients.append(made)
        return made
