"""A TCP proxy before a server's Unix socket, with connections to reset, to refuse and to swallow."""

import asyncio
import socket
import struct
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

AT_ONCE = struct.pack("ii", 1, 0)
"""Linger for no time: the other side sees a reset, not an orderly end."""
CHUNK = 65_536


class Proxy:
    """Listens on a port of 127.0.0.1 and passes everything on to the Unix socket `upstream`. Runs in a thread."""

    def __init__(self, upstream: Path) -> None:
        self.port = 0
        self._upstream = upstream
        self._writers: set[asyncio.StreamWriter] = set()
        self._refusing = False
        self._flows = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._flows.set()
        self._do(self._listen())

    def lead_to(self, upstream: Path) -> None:
        """Lead new connections to another socket; those that are open stay as they are."""
        self._upstream = upstream

    def reset(self) -> None:
        """Reset every connection that is open now."""
        self._do(self._reset())

    def refuse(self, seconds: float) -> None:
        """Be `refusing` for `seconds`."""
        with self.refusing():
            time.sleep(seconds)

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Reset every connection, and meanwhile each new one at once.

        It continues to listen, because another program could take the port.
        """
        self._refusing = True
        try:
            self._do(self._reset())
            yield
        finally:
            self._refusing = False

    def swallow(self, seconds: float) -> None:
        """Be `swallowing` for `seconds`."""
        with self.swallowing():
            time.sleep(seconds)

    @contextmanager
    def swallowing(self) -> Iterator[None]:
        """Accept data and connections meanwhile, but pass nothing on; then reset them all."""
        self._flows.clear()
        try:
            yield
            self._do(self._reset())
        finally:
            self._loop.call_soon_threadsafe(self._flows.set)

    def close(self) -> None:
        """End all of it."""
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, step: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(step, self._loop).result()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._pass_on, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _reset(self) -> None:
        for writer in self._writers:
            _reset_one(writer)

    async def _end(self) -> None:
        self._server.close()
        await self._reset()
        flows = asyncio.all_tasks() - {asyncio.current_task()}
        for flow in flows:
            flow.cancel()
        await asyncio.gather(*flows, return_exceptions=True)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            _reset_one(writer)
            return
        try:
            above, to_above = await asyncio.open_unix_connection(self._upstream)
        except OSError:
            _reset_one(writer)
            return
        both = {writer, to_above}
        self._writers |= both
        try:
            await asyncio.gather(self._pour(reader, to_above), self._pour(above, writer))
        finally:
            self._writers -= both

    async def _pour(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while piece := await source.read(CHUNK):
                await self._flows.wait()
                target.write(piece)
                await target.drain()
        target.close()


def _reset_one(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    if sock.family == socket.AF_INET:
        with suppress(OSError):  # the client left while its connection was swallowed
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
    writer.transport.abort()
