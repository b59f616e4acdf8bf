"""Notifications: conditions that hold, and a service that Apprise calls."""

import json
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from sqlalchemy import Engine, select, update

from models.database import in_transaction, write_transaction
from models.tables import Notice, NotifyTarget
from models.types import db_now_plus
from tests.support import JSON
from worker.notify.plan import Held

REMIND = timedelta(hours=24)


def held(name: str = "failed_events", severity: str = "problem", subject: str = "", *, explained: bool = False) -> Held:
    return Held(name, subject, severity, f"{name} holds", "do this", "/ops/", timedelta(seconds=60), explained)


class Service:
    """A service that Apprise posts JSON to (`json://`). It answers with `answers`, then 200, and keeps the messages."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.answers: deque[int] = deque()
        self.took: list[JSON] = []


@contextmanager
def json_service(path: str = "secret-path") -> Iterator[Service]:
    """Run a service; its URL for NOTIFY contains the secret `path`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            status = service.answers.popleft() if service.answers else 200
            if status < 300 and self.path == f"/{path}":
                service.took.append(body)
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    service = Service(f"json://127.0.0.1:{server.server_port}/{path}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()


def later(engine: Engine, seconds: float) -> None:
    """Let `seconds` pass: everything that was recorded about notifications becomes older."""
    by = timedelta(seconds=seconds)
    with write_transaction(engine) as tx:
        for table, columns in ((Notice, ("since", "told_at", "gone_since")), (NotifyTarget, ("due_at",))):
            key = list(table.__table__.primary_key)
            for row in tx.execute(select(table.__table__)).mappings().all():
                older = {name: row[name] - by for name in columns if row[name]}
                tx.execute(update(table).where(*(column == row[column.name] for column in key)).values(older))


def lose_leases(engine: Engine) -> None:
    """Let another process have taken over every target."""
    taken = update(NotifyTarget).values(fence=NotifyTarget.fence + 1, leased_until=db_now_plus(-1))
    in_transaction(engine, lambda tx: tx.execute(taken))
