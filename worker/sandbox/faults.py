"""Faults that are injected into the HTTP API, each into the next calls that match it."""

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError, validate_call

from worker.sandbox.problems import problems

JSON = dict[str, Any]


@dataclass
class Fault:
    """One rule. `method` and `path` are regular expressions that match from the start (no query)."""

    kind: Literal["fail", "empty", "invalid_item", "spoil", "answer"]
    method: str
    path: str
    times: int | None  # number of calls that it still applies to; None: until cleared
    query: str = ""  # a regular expression found in the query
    page: int | None = None  # only this page of a listing, counted from 1
    status: int = 500  # 0: the connection is closed without an answer
    retry_after: int | None = None
    after_effect: bool = False  # the operation is done first, only its answer is lost
    item: int = 0
    change: Callable[[JSON], Any] | None = None
    fields: JSON | None = None
    body: bytes = b""
    content_type: str = "application/json"


class Faults:
    """The rules in force. The first one that matches a call applies. Thread-safe."""

    def __init__(self) -> None:
        self._rules: list[Fault] = []
        self._lock = threading.Lock()

    def fail(
        self,
        path: str = ".*",
        *,
        method: str = ".*",
        status: int = 500,
        times: int | None = 1,
        retry_after: int | None = None,
        page: int | None = None,
        query: str = "",
        after_effect: bool = False,
    ) -> None:
        """Answer the next `times` matching calls with `status` (and Retry-After in seconds).

        A 404 has the body with which WorkOS says that the object does not exist.
        `after_effect=True`: the call is carried out, then its answer is lost (status 0: closed connection).
        """
        self._add(Fault("fail", method, path, times, query, page, status, retry_after, after_effect))

    def answer(
        self,
        path: str,
        body: bytes = b"",
        *,
        method: str = ".*",
        status: int = 200,
        content_type: str = "application/json",
        query: str = "",
        times: int | None = None,
    ) -> None:
        """Answer matching calls with exactly these bytes, as a proxy in front of WorkOS may do."""
        self._add(Fault("answer", method, path, times, query, status=status, body=body, content_type=content_type))

    def truncate(self, path: str, page: int, *, status: int = 500, times: int | None = None) -> None:
        """Fail each request for page `page` (from 1) of a listing."""
        self._add(Fault("fail", "GET", path, times, page=page, status=status))

    def empty(self, path: str, *, times: int | None = 1) -> None:
        """Answer a listing with no items and no further page, although it has items."""
        self._add(Fault("empty", "GET", path, times))

    def invalid_item(
        self,
        path: str,
        *,
        item: int = 0,
        missing: str | None = None,
        change: Callable[[JSON], Any] | None = None,
        times: int | None = 1,
        page: int | None = None,
        query: str = "",
    ) -> None:
        """Make item number `item` of a listing invalid: omit the field `missing`, or replace it by `change(item)`."""

        def without(found: JSON) -> JSON:
            return {name: value for name, value in found.items() if name != missing}

        self._add(Fault("invalid_item", "GET", path, times, query, page=page, item=item, change=change or without))

    def spoil(self, path: str, *, times: int | None = 1, **fields: Any) -> None:
        """Answer a GET with some fields of the body replaced by `fields`."""
        self._add(Fault("spoil", "GET", path, times, fields=fields))

    def clear(self) -> None:
        """Remove all rules."""
        with self._lock:
            self._rules.clear()

    def add_json(self, rule: JSON) -> None:
        """Add a rule from JSON: {"kind": "fail", "path": "/organizations", …}, with the arguments of that method.

        Raises:
            ValueError: there is no such kind or argument, or a value is not of its type.
        """
        arguments = dict(rule)
        kind = arguments.pop("kind", None)
        makers: dict[Any, Callable[..., None]] = {
            "fail": self.fail,
            "truncate": self.truncate,
            "empty": self.empty,
            "invalid_item": self.invalid_item,
            "answer": self.answer,
        }
        if kind not in makers:
            raise ValueError(f"unknown kind of fault: {kind!r}; there are {', '.join(makers)}")
        try:
            validate_call(makers[kind])(**arguments)
        except ValidationError as error:
            raise ValueError(problems(error, kind)) from None
        except re.error as error:
            raise ValueError(f"{kind}: not a regular expression: {error}") from None

    def take(self, method: str, path: str, page: int, query: str = "") -> Fault | None:
        """Return the rule that applies to this call, and count the call; None if no rule applies."""
        with self._lock:
            for rule in self._rules:
                if rule.page not in (None, page) or not re.search(rule.query, query):
                    continue
                if not (re.match(rule.method, method) and re.match(rule.path, path)):
                    continue
                if rule.times is not None:
                    rule.times -= 1
                    if rule.times <= 0:
                        self._rules.remove(rule)
                return rule
        return None

    def _add(self, rule: Fault) -> None:
        for pattern in (rule.method, rule.path, rule.query):
            re.compile(pattern)
        with self._lock:
            self._rules.append(rule)
