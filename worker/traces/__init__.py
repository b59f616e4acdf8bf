"""Traces for OpenTelemetry (extra `otel`) if OTEL_EXPORTER_OTLP_ENDPOINT is set; otherwise none of it is imported.

A trace starts with a request, a read of the tail, a page of a resync or a call of WorkOS. The trace of a delivery is
stored with its event. The drain and the hooks, in other processes, continue it.
"""

import threading
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Unpack

from worker.errors import ConfigurationError

if TYPE_CHECKING:
    from worker.traces.otel import Attributes, Span, Traced, Tracing


class _NoSpan:
    def note(self, **_attributes: Unpack["Attributes"]) -> None:
        pass


class _Process:
    tracing: "Tracing | None" = None


_starting = threading.Lock()
_NO_SPAN = nullcontext(_NoSpan())
_NOTHING = nullcontext()


def start(endpoint: str | None, share: float) -> None:
    """Trace this process from now on, and its engines and Redis clients that are made from now on.

    Args:
        endpoint: the base URL of a collector that speaks OTLP over HTTP. None: do nothing.
        share: the share of traces to send, from 0 to 1.

    Raises:
        ConfigurationError: the extra is not installed, or a variable of OpenTelemetry's own is invalid.
    """
    if endpoint is None:
        return
    with _starting:
        if _Process.tracing is not None:
            return
        try:
            from worker.traces.otel import Tracing  # noqa: PLC0415 - an extra
        except ImportError as error:
            remedy = "run pip install 'workos-sync[otel]', or remove it"
            raise ConfigurationError(f"OTEL_EXPORTER_OTLP_ENDPOINT: {remedy}") from error
        try:
            _Process.tracing = Tracing(endpoint, share)
        except ValueError as error:
            raise ConfigurationError(
                "a variable OTEL_EXPORTER_OTLP_... or OTEL_BSP_... is invalid; correct it"
            ) from error


def stop() -> None:
    """Send what is queued, for at most two seconds, and trace nothing more."""
    with _starting:
        tracing, _Process.tracing = _Process.tracing, None
        if tracing is not None:
            tracing.close()


def is_on() -> bool:
    """Return whether this process traces."""
    return _Process.tracing is not None


def watch_requests(app: Any) -> None:
    """Trace the requests of a Flask application. Call it before other functions that run before a request."""
    if (tracing := _Process.tracing) is not None:
        tracing.watch_requests(app)


def span(name: str, **attributes: Unpack["Attributes"]) -> "AbstractContextManager[Span | _NoSpan]":
    """Return a context that is a span of the current trace; if there is none, of a new one."""
    tracing = _Process.tracing
    return _NO_SPAN if tracing is None or tracing.leaves_out() else tracing.span(name, attributes)


def continued(
    name: str, traceparent: str | None, **attributes: Unpack["Attributes"]
) -> "AbstractContextManager[Span | _NoSpan]":
    """Return a context that is a span of a stored trace; if `traceparent` is None, of none."""
    tracing = _Process.tracing
    return _NO_SPAN if tracing is None or traceparent is None else tracing.span(name, attributes, traceparent)


def within(traceparents: Iterable[str | None]) -> AbstractContextManager[None]:
    """Return a context whose statements belong to the first of some stored traces, if there is one."""
    tracing = _Process.tracing
    return _NOTHING if tracing is None else tracing.within(next(filter(None, traceparents), None))


def current() -> str | None:
    """Return the current span, to be stored or sent: a W3C `traceparent`. None if its trace is not sent."""
    tracing = _Process.tracing
    return None if tracing is None else tracing.current()


def batch() -> AbstractContextManager[None]:
    """Return a context in which a batch of events is applied and committed. `decision` names the events."""
    tracing = _Process.tracing
    return _NOTHING if tracing is None else tracing.batch()


def note_failure(event_id: str, error: BaseException) -> None:
    """Mark the span `apply` of an event of the batch, if it has one, as failed."""
    if (tracing := _Process.tracing) is not None:
        tracing.note_failure(event_id, error)


def decision(events: "Sequence[Traced]") -> AbstractContextManager[None]:
    """Return a context that decides `events`.

    Each event with a stored trace gets a span `apply` from the start of the batch to its end, and in it a span
    `decide`. Outside of a batch, as in a dry run, it gets none.
    """
    tracing = _Process.tracing
    return _NOTHING if tracing is None else tracing.decision(events)
