"""The Python peer, as one writes it with `procrastinate`: verify, enqueue one job, 200; the job upserts.

It runs in an environment of its own and imports nothing of this project. `web` is the ASGI application for uvicorn,
`jobs` the procrastinate application for its worker. procrastinate.py says what it does and does not do.
"""

import hashlib
import hmac
import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import procrastinate
from psycopg_pool import AsyncConnectionPool
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

DATABASE_URL = os.environ["DATABASE_URL"]
SECRET = os.environ["WEBHOOK_SECRET"].encode()
TOLERANCE_SECONDS = 180
CONNECTIONS = 10
"""To PostgreSQL, for each process."""
UPSERT = """
    INSERT INTO organizations AS known (id, name, external_id, updated_at)
    VALUES (%(id)s, %(name)s, %(external_id)s, %(updated_at)s)
    ON CONFLICT (id) DO UPDATE
    SET name = excluded.name, external_id = excluded.external_id, updated_at = excluded.updated_at
    WHERE known.updated_at < excluded.updated_at"""
DELETE = "DELETE FROM organizations WHERE id = %(id)s"

jobs = procrastinate.App(
    connector=procrastinate.PsycopgConnector(conninfo=DATABASE_URL, min_size=1, max_size=CONNECTIONS)
)
_pools: list[AsyncConnectionPool[Any]] = []


async def apply(event: dict[str, Any]) -> None:
    """Bring one event into the table; an older version than the row's changes nothing."""
    if not _pools:
        _pools.append(AsyncConnectionPool(DATABASE_URL, min_size=1, max_size=CONNECTIONS, open=False))
        await _pools[0].open()
    async with _pools[0].connection() as connection:
        await connection.execute(DELETE if event["event"].endswith(".deleted") else UPSERT, event["data"])


apply_later = jobs.task(name="apply", retry=5)(apply)


async def receive(request: Request) -> Response:
    """Answer 200 once the job is committed, 400 if the signature is refused."""
    body = await request.body()
    if not _is_genuine(body, request.headers.get("workos-signature", "")):
        return JSONResponse({"error": "signature refused"}, status_code=400)
    await apply_later.defer_async(event=json.loads(body))
    return JSONResponse({"status": "accepted"})


def _is_genuine(body: bytes, header: str) -> bool:
    parts = dict(part.strip().partition("=")[::2] for part in header.split(","))
    at, digest = parts.get("t", ""), parts.get("v1", "")
    if not at.isdecimal() or abs(time.time() - int(at) / 1000) > TOLERANCE_SECONDS:
        return False
    expected = hmac.new(SECRET, at.encode() + b"." + body, hashlib.sha256).hexdigest()
    return hmac.compare_digest(expected, digest)


async def ready(_request: Request) -> Response:
    """Answer 200."""
    return JSONResponse({})


@asynccontextmanager
async def _lifespan(_app: Starlette) -> AsyncIterator[None]:
    async with jobs.open_async():
        yield


web = Starlette(
    routes=[Route("/healthz", ready), Route("/webhooks/workos", receive, methods=["POST"])], lifespan=_lifespan
)
