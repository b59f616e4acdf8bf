"""Results that a process computes once, and that tests, which build hundreds of applications and engines, share."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import flask
import httpx2
import jinja2
import pytest
from jinja2.bccache import Bucket
from spectree.model_adapter.pydantic_adapter import PydanticModelAdapter
from sqlalchemy import Engine
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.util import LRUCache


class _Templates(jinja2.BytecodeCache):
    """Compiled templates."""

    def __init__(self) -> None:
        self._compiled: dict[str, bytes] = {}

    def load_bytecode(self, bucket: Bucket) -> None:
        if bucket.key in self._compiled:
            bucket.bytecode_from_string(self._compiled[bucket.key])

    def dump_bytecode(self, bucket: Bucket) -> None:
        self._compiled[bucket.key] = bucket.bytecode_to_string()


@contextmanager
def shared_caches() -> Iterator[None]:
    """Share the API's JSON schemas, the certificates of HTTP clients, compiled templates and compiled SQL statements.

    Half of the time of the tests went into computing these again.
    """
    statements: LRUCache[object, object] = LRUCache(5000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PydanticModelAdapter, "json_schema", cache(PydanticModelAdapter.json_schema))
        patch.setattr("httpx2._transports.default.create_ssl_context", cache(httpx2.create_ssl_context))
        patch.setattr(flask.Flask, "jinja_options", {"bytecode_cache": _Templates()})
        # A compiled statement belongs to a dialect; all of ours of one class are alike.
        patch.setattr(DefaultDialect, "__eq__", lambda self, other: type(self) is type(other))
        patch.setattr(DefaultDialect, "__hash__", lambda self: hash(type(self)))
        patch.setattr(Engine, "_compiled_cache", property(lambda _: statements, lambda _, __: None), raising=False)
        yield
