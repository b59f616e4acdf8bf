"""Where web processes listen, and how one ends."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest
from pydantic import ValidationError

from webhooks import serve
from webhooks.asgi import Gateway
from worker.cli.announcement import announcement
from worker.errors import ConfigurationError
from worker.settings import Settings


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


@pytest.mark.parametrize(("bind", "url"), [("127.0.0.1", "http://127.0.0.1"), ("::1", "http://[::1]")])
def test_web_listens_on_bind_and_announces_where(bind: str, url: str) -> None:
    given = {"bind": bind, "port": 0, "webhook_path_token": "token-of-16-chars", "ops_tokens": "ann:token-of-16-chars"}
    settings = Settings.model_validate(given)
    with ExitStack() as opened:
        sockets = [opened.enter_context(closing(each)) for each in serve.listen(settings)]
        address, port = sockets[0].getsockname()[:2]
        assert len(sockets) == 2 and address == bind
        text = announcement("web", settings, sockets, 80)
    assert f"{url}:{port}/webhooks/workos/<WEBHOOK_PATH_TOKEN>\n" in text and f"Pages: {url}:{port}/ops/" in text
    assert "set API_TOKENS" in text and "workos-sync doctor" in text and "token-of-16-chars" not in text


@pytest.mark.parametrize(
    ("command", "secret", "then"),
    [
        ("worker", None, "start clock too"),
        ("clock", None, "start worker too"),
        ("worker", "whsec_0123456789abcdef", "start web and clock too"),
        ("web", "whsec_0123456789abcdef", "start worker and clock too"),
        ("up", "whsec_0123456789abcdef", "run workos-sync doctor"),
    ],
)
def test_an_announcement_fits_a_terminal_and_suggests_only_what_starts(
    command: str, secret: str | None, then: str
) -> None:
    url = "postgresql://mirror@database.internal.acme.example:5432/workos_sync"
    settings = Settings(database_url=url, redis_url="rediss://cache.internal.acme.example:6380/2")
    given = {"workos_webhook_secrets": secret} if secret else {}
    settings = Settings.model_validate(settings.model_dump() | given)
    text = announcement(command, settings, [], 80)
    assert max(map(len, text.splitlines())) <= 80
    assert f"Next: {then}" in text


@pytest.mark.parametrize("bind", ["192.0.2.1", "localhost"])
def test_bind_must_be_an_address_of_this_machine(bind: str) -> None:
    with pytest.raises((ConfigurationError, ValidationError), match=r"BIND 192\.0\.2\.1|IP address"):
        serve.listen(Settings.model_validate({"bind": bind}))
