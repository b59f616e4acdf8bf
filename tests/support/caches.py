"""Results that a process computes once, and that tests, which build hundreds of applications and engines, share."""

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import flask
import httpx2
import jinja2
import pytest
from jinja2.bccache import Bucket
from spectree.model_adapter.pydantic_adapter import PydanticModelAdapter
from spectree.utils import json_compatible_deepcopy
from sqlalchemy import Engine
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.util import LRUCache
from werkzeug.routing import Rule


class _Templates(jinja2.BytecodeCache):
    """Compiled templates."""

    def __init__(self) -> None:
        self._compiled: dict[str, bytes] = {}

    def load_bytecode(self, bucket: Bucket) -> None:
        if bucket.key in self._compiled:
            bucket.bytecode_from_string(self._compiled[bucket.key])

    def dump_bytecode(self, bucket: Bucket) -> None:
        self._compiled[bucket.key] = bucket.bytecode_to_string()


def _shared_builders() -> Callable[..., object]:
    """`Rule._compile_builder`, which compiles Python code for each route of each application, once for each route."""
    compile_builder = Rule._compile_builder
    compiled: dict[object, object] = {}

    def shared(rule: Rule, append_unknown: bool = True) -> object:
        key = rule.rule, tuple(rule._trace), repr(rule.defaults), append_unknown
        if key not in compiled:
            compiled[key] = compile_builder(rule, append_unknown)
        return compiled[key]

    return shared


def _quick_copies() -> Callable[[object], object]:
    """spectree's copy of a schema, made by pickle, in a fifth of the time. The shared schemas live as long as this."""
    pickled: dict[int, bytes] = {}

    def copied(schema: object) -> object:
        if id(schema) not in pickled:
            pickled[id(schema)] = pickle.dumps(json_compatible_deepcopy(schema))
        return pickle.loads(pickled[id(schema)])  # noqa: S301 - our own

    return copied


@contextmanager
def shared_caches() -> Iterator[None]:
    """Share compiled SQL, templates and routes, the API's JSON schemas, and the certificates of HTTP clients.

    Half of the time of the tests went into computing these again.
    """
    statements: LRUCache[object, object] = LRUCache(5000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PydanticModelAdapter, "json_schema", cache(PydanticModelAdapter.json_schema))
        patch.setattr("spectree.spec.json_compatible_deepcopy", _quick_copies())
        patch.setattr("httpx2._transports.default.create_ssl_context", cache(httpx2.create_ssl_context))
        patch.setattr(flask.Flask, "jinja_options", {"bytecode_cache": _Templates()})
        patch.setattr(Rule, "_compile_builder", _shared_builders())
        # A compiled statement belongs to a dialect; all of ours of one class are alike.
        patch.setattr(DefaultDialect, "__eq__", lambda self, other: type(self) is type(other))
        patch.setattr(DefaultDialect, "__hash__", lambda self: hash(type(self)))
        patch.setattr(Engine, "_compiled_cache", property(lambda _: statements, lambda _, __: None), raising=False)
        yield
