"""Holds connections to `web` until standard input ends. Arguments: PORT IDLE DRIPPING.

IDLE of them had one answer and stay open; DRIPPING send a byte of a body every 0.2 s, and are replaced when they are
closed.
"""

import selectors
import socket
import sys
import time
from contextlib import suppress

from tests.support.connections import connect, raise_file_limit, reset_when_closed

DRIP_SECONDS = 0.2
GROUPS = 20
"""The drips are spread over `DRIP_SECONDS`, so that they do not come all at once."""
ASK = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
BODY = b"POST /webhooks/workos HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\n"


def start_of_body(port: int) -> socket.socket:
    made = connect(port)
    made.sendall(BODY)
    made.setblocking(False)
    return made


def main(port: int, idle: int, dripping: int) -> None:
    """Open all connections, print `ready`, and hold them; at the end, print how many bytes were sent."""
    raise_file_limit(idle + dripping + 100)
    silent = [connect(port) for _ in range(idle)]
    for one in silent:
        reset_when_closed(one)
        one.sendall(ASK)
    for one in silent:
        assert one.recv(4096).startswith(b"HTTP/1.1 200 ")
    senders = [start_of_body(port) for _ in range(dripping)]
    print("ready", flush=True)
    sent, group, due = 0, 0, time.monotonic()
    with selectors.DefaultSelector() as end:
        end.register(sys.stdin, selectors.EVENT_READ)
        while not end.select(max(0.0, due - time.monotonic())):
            for place in range(group, dripping, GROUPS):
                try:
                    sent += senders[place].send(b"x")
                except BlockingIOError:
                    continue
                except OSError:  # it took too long, and had its answer
                    senders[place].close()
                    senders[place] = start_of_body(port)
            group, due = (group + 1) % GROUPS, due + DRIP_SECONDS / GROUPS
    with suppress(BrokenPipeError):
        print(sent, flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
