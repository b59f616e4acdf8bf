"""How a web process ends."""

import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

from webhooks import serve
from webhooks.asgi import Gateway


class Reports(Gateway):
    """A gateway that keeps what it should report."""

    def __init__(self) -> None:
        self.requests, self.closing = 0, False
        self.reported: list[Exception] = []

    def report(self, error: Exception) -> None:
        """Keep the error."""
        self.reported.append(error)


class FailingServer:
    """A server that fails while it starts."""

    def __init__(self, *_: object) -> None:
        pass

    async def serve(self) -> None:
        raise OSError("no descriptors are left")

    def stop(self) -> None:
        pass


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with closing(socket.create_server(("127.0.0.1", 0))) as opened:
        yield opened


def test_a_process_whose_server_fails_reports_it_and_exits_with_1(
    listening: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[object] = []
    monkeypatch.setattr(serve, "_Server", FailingServer)
    monkeypatch.setattr("os._exit", ended.append)
    gateway = Reports()
    serve.serve(gateway, listening, lambda: ended.append("closed"))
    assert (ended, [str(error) for error in gateway.reported]) == (["closed", 1], ["no descriptors are left"])
