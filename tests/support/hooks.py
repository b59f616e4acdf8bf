"""Hosts that hooks call."""

import json
import threading
from collections import deque
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from standardwebhooks.webhooks import Webhook

from tests.support import JSON

SECRET = "whsec_" + "c2VjcmV0" * 4


class FunctionTarget:
    """A hook that calls a function, one change at a time."""

    at_once = 1

    def __init__(self, function: Callable[[JSON], object]) -> None:
        self._function = function

    def __call__(self, message: JSON) -> None:
        self._function(message)


class Web:
    """A host that hooks call over HTTP. It answers with `answers` while it is `open`, and keeps the messages."""

    def __init__(self) -> None:
        self.answers: deque[int] = deque()
        self.took: list[JSON] = []
        self.tried = 0
        self.asked = 0
        self.open = threading.Event()
        self.open.set()
        self._lock = threading.Lock()
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                Webhook(SECRET).verify(body, dict(self.headers.items()))
                web.asked += 1
                web.open.wait(60)
                with web._lock:
                    web.tried += 1
                    status = web.answers.popleft() if web.answers else 204
                    if status < 300:
                        web.took.append(json.loads(body) | {"id": self.headers["webhook-id"]})
                self.send_response(status)
                self.send_header("location", "/elsewhere")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hooks"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
