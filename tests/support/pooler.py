"""A substitute for PgBouncer in session mode: it refuses the same start-up parameters, and counts round trips."""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from sqlalchemy.engine import URL

ALLOWED = {"user", "database", "replication", "application_name", "client_encoding", "datestyle", "timezone"}
"""Start-up parameters that PgBouncer takes by default; any other is refused with this message."""
REFUSED = "unsupported startup parameter: {}"
SSL_REQUEST, GSS_REQUEST = 80877103, 80877104


@dataclass
class Pooler:
    """A running pooler: its URL, the start-up parameters it saw, and the round trips after each log-in."""

    url: str
    parameters: list[dict[str, str]] = field(default_factory=list)
    round_trips: int = 0


@contextmanager
def session_pooler(server: URL) -> Iterator[Pooler]:
    """Yield a pooler in front of the PostgreSQL server at `server`, a URL of a Unix socket."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    url = server.set(host="127.0.0.1", port=port, query={"sslmode": "disable"}).render_as_string(hide_password=False)
    pooler = Pooler(url)
    path = f"{server.query['host']}/.s.PGSQL.{server.port or server.query.get('port', 5432)}"

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=_relay, args=(pooler, client, path), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield pooler
    finally:
        listener.close()


def _relay(pooler: Pooler, client: socket.socket, path: str) -> None:
    with client, socket.socket(socket.AF_UNIX) as server:
        start = _start_up(client)
        parameters = _parameters(start)
        pooler.parameters.append(parameters)
        if unknown := sorted(parameters.keys() - ALLOWED):
            text = f"SFATAL\0VFATAL\0C08P01\0M{REFUSED.format(unknown[0])}\0\0".encode()
            client.sendall(b"E" + struct.pack("!i", len(text) + 4) + text)
            return
        server.connect(path)
        server.sendall(start)
        back = threading.Thread(target=_copy, args=(server, client), daemon=True)
        back.start()
        with suppress(OSError):  # the database may be dropped before the client says goodbye
            for kind, message in _messages(client):
                pooler.round_trips += kind in b"QS"  # a simple query, or the end of an extended one
                server.sendall(message)


def _start_up(client: socket.socket) -> bytes:
    while True:
        (length, code) = struct.unpack("!ii", head := _exactly(client, 8))
        if code not in (SSL_REQUEST, GSS_REQUEST):
            return head + _exactly(client, length - 8)
        client.sendall(b"N")


def _parameters(start: bytes) -> dict[str, str]:
    words = start[8:].rstrip(b"\0").decode().split("\0")
    return dict(zip(words[::2], words[1::2], strict=False))


def _messages(client: socket.socket) -> Iterator[tuple[bytes, bytes]]:
    while head := _exactly(client, 5):
        yield head[:1], head + _exactly(client, struct.unpack("!i", head[1:])[0] - 4)


def _exactly(source: socket.socket, number: int) -> bytes:
    """Read a number of bytes; fewer at the end."""
    data = b""
    while len(data) < number and (more := source.recv(number - len(data))):
        data += more
    return data


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except OSError:
        return
