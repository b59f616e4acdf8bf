"""Many connections, and bytes on plain sockets."""

import itertools
import re
import resource
import socket
import struct
from contextlib import suppress

import pytest

from tests.support import sign

PATH = "/webhooks/workos"
CONTINUE = 100


def raise_file_limit(needed: int) -> None:
    """Raise the limit of open files to its maximum. Skip the test if that is less than `needed`."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most < needed:
        pytest.skip(f"the limit of open files is {most}, and {needed} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def connect(port: int, seconds: float = 20.0) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=seconds)


def reset_when_closed(client: socket.socket) -> None:
    """Reset the connection when it is closed, so that its port is free at once: thousands would wait for a minute."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def delivery(body: bytes, *fields: str, version: str = "1.1", path: str = PATH) -> bytes:
    """A signed delivery as bytes."""
    signed = (f"WorkOS-Signature: {sign(body)}", f"Content-Length: {len(body)}")
    return "\r\n".join((f"POST {path} HTTP/{version}", "Host: localhost", *signed, *fields, "", "")).encode() + body


def get(path: str, *fields: str) -> bytes:
    return "\r\n".join((f"GET {path} HTTP/1.1", "Host: localhost", *fields, "", "")).encode()


def read_all(client: socket.socket) -> bytes:
    """Everything until the server closes the connection."""
    parts: list[bytes] = []
    with suppress(ConnectionResetError):
        parts.extend(itertools.takewhile(bool, iter(lambda: client.recv(65_536), b"")))
    return b"".join(parts)


def read_answers(client: socket.socket, number: int) -> list[tuple[int, bytes]]:
    """Read `number` responses from an open connection; return the status and the body of each.

    `100 Continue` is no response. It may come together with the response.
    """
    data = b""
    answers: list[tuple[int, bytes]] = []
    while len(answers) < number:
        head, end, rest = data.partition(b"\r\n\r\n")
        length = re.search(rb"\r\ncontent-length: (\d+)", head.lower())
        size = int(length[1]) if length else 0
        if end and len(rest) >= size:
            if (status := int(head.split(b" ", 2)[1])) != CONTINUE:
                answers.append((status, rest[:size]))
            data = rest[size:]
            continue
        more = client.recv(65_536)
        if not more:
            raise ConnectionResetError(f"closed after {len(answers)} answers")
        data += more
    return answers
