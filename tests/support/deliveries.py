"""Deliveries over HTTP to a running `workos-sync web`."""

import http.client
from contextlib import closing

from tests.support import sign


def deliver(port: int, body: bytes, path: str = "/webhooks/workos", signature: str = "") -> int:
    """Post a body on its own connection, signed with `SECRET` unless `signature` is given; returns the status."""
    # Other tests share the machine: how soon a delivery is answered is measured only where no test runs beside it.
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        return deliver_on(connection, body, path, signature)


def deliver_on(
    connection: http.client.HTTPConnection, body: bytes, path: str = "/webhooks/workos", signature: str = ""
) -> int:
    """As `deliver`, on an open connection."""
    connection.request("POST", path, body, {"WorkOS-Signature": signature or sign(body)})
    answer = connection.getresponse()
    answer.read()
    return answer.status
