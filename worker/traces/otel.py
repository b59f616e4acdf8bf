"""Spans by OpenTelemetry's SDK and its instrumentations of Flask, SQLAlchemy and Redis.

`worker.traces` imports this module only if traces are on.
"""

import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.metadata import version
from typing import Any, Protocol, TypedDict, Unpack, cast

import structlog
from opentelemetry import propagate, trace
from opentelemetry.context import Context, attach, detach
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.redis import RedisInstrumentor
from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, SamplingResult, TraceIdRatioBased
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from worker.errors import unexpected
from worker.throttle import LogThrottle

log = structlog.get_logger()

FLUSH_SECONDS = 2.0
"""How long a process that ends waits for its last spans to be sent."""
SCOPE = "workos_sync"
MAX_TEXT = 2_000
"""Characters of an attribute, such as an SQL statement, that are sent."""
NAMES = {
    "event_id": "workos_sync.event.id",
    "event_type": "workos_sync.event.type",
    "organization_id": "workos_sync.organization.id",
    "kind": "workos_sync.kind",
    "items": "workos_sync.items",
    "hook": "workos_sync.hook",
    "method": "http.request.method",
    "route": "http.route",
    "status": "http.response.status_code",
}
"""Our attributes → their names in a span."""
ERROR = "error.type"
METHODS = ("http.request.method", "http.method")
STATUSES = ("http.response.status_code", "http.status_code")
DATABASE = ("db.system.name", "db.system", "db.query.text", "db.statement")
SENT = frozenset((*NAMES.values(), ERROR, *METHODS, *STATUSES, *DATABASE))
"""The attributes that leave the process. Instrumentations add others, with paths, queries, addresses and headers."""
PROBES = frozenset(("/healthz", "/readyz", "/metrics"))
"""Paths that are requested at short intervals."""
with suppress_instrumentation():
    LEFT_OUT = trace.set_span_in_context(trace.NonRecordingSpan(trace.SpanContext(1, 1, is_remote=False)))
"""The context of what is not traced. In it, the instrumentations do nothing, and no span is sent."""

_batch: ContextVar["_Batch | None"] = ContextVar("batch", default=None)
_traceparents = TraceContextTextMapPropagator()


class Attributes(TypedDict, total=False):
    """What a span of ours says. None of it is personal data."""

    event_id: str
    event_type: str
    organization_id: str | None
    kind: str
    items: int
    hook: str
    method: str
    route: str
    """A path with `{id}` in place of ids."""
    status: int | None


class Traced(Protocol):
    """An event as the drain reads it."""

    @property
    def id(self) -> str: ...  # noqa: D102 - a column of `events`

    @property
    def type(self) -> str: ...  # noqa: D102 - likewise

    @property
    def traceparent(self) -> str | None: ...  # noqa: D102 - likewise


class Span:
    """A part of a trace, which lasts as long as its context."""

    def __init__(self, started: trace.Span) -> None:
        self._started = started

    def note(self, **attributes: Unpack[Attributes]) -> None:
        """Add attributes. Those that are None are left out."""
        self._started.set_attributes(_named(attributes))


class Tracing:
    """The traces of this process. The arguments are those of `worker.traces.start`."""

    def __init__(self, endpoint: str, share: float) -> None:
        # Strangers could have their deliveries traced, and WorkOS would get our ids.
        propagate.set_global_textmap(_Nothing())
        about: dict[str, str | int] = {
            "service.name": "workos-sync",
            "service.version": version("workos-sync"),
            "process.pid": os.getpid(),
        }
        self._exporter = _Exporter(OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces"))
        self._provider = TracerProvider(
            sampler=ParentBased(_NewTraces(share)),
            resource=Resource.create(about).merge(OTELResourceDetector().detect()),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        # It logs what the collector answers, at any rate. `_Exporter` logs instead.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        self._share = share
        self._tracer = self._provider.get_tracer(SCOPE)
        self._given: dict[str, Any] = {"tracer_provider": self._provider, "meter_provider": NoOpMeterProvider()}
        for instrumentor in (SQLAlchemyInstrumentor(), RedisInstrumentor()):
            # Here and not in `close`, when other threads may execute statements: of the process that forked this one.
            if instrumentor.is_instrumented_by_opentelemetry:
                instrumentor.uninstrument()
            instrumentor.instrument(skip_dep_check=True, **self._given)  # our tests check that it works

    def close(self) -> None:
        """Send what is queued, for at most `FLUSH_SECONDS`. The SDK alone would wait 30 seconds, and try again."""
        ending = threading.Thread(target=self._provider.shutdown, name="traces-end", daemon=True)
        ending.start()
        ending.join(FLUSH_SECONDS)
        if ending.is_alive():
            self._exporter.shutdown()

    def watch_requests(self, app: Any) -> None:
        """Trace a share of the requests of a Flask application.

        The instrumentation costs more than the rest of a delivery, so only the selected requests pass through it.
        """
        from opentelemetry.instrumentation.flask import FlaskInstrumentor  # noqa: PLC0415 - only `web` needs Flask

        plain, instrument = app.wsgi_app, cast("Any", FlaskInstrumentor.instrument_app)  # which has no types
        instrument(app, enable_commenter=False, **self._given)
        traced, begin = app.wsgi_app, app.before_request_funcs[None].pop()
        app.before_request_funcs[None].append(lambda: None if self.leaves_out() else begin())

        def wsgi_app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
            if environ["PATH_INFO"] not in PROBES and random.random() < self._share:  # noqa: S311 - no secret
                return traced(environ, start_response)
            token = attach(LEFT_OUT)
            try:
                return plain(environ, start_response)
            finally:
                detach(token)

        app.wsgi_app = wsgi_app

    def leaves_out(self) -> bool:
        """Return whether what happens now belongs to a trace that is not sent."""
        found = trace.get_current_span().get_span_context()
        return found.is_valid and not found.trace_flags.sampled

    @contextmanager
    def span(self, name: str, attributes: Attributes, traceparent: str | None = None) -> Iterator[Span]:
        """Run a span of a stored trace, or of the current one."""
        with self._tracer.start_as_current_span(
            name,
            None if traceparent is None else _context_of(traceparent),
            attributes=_named(attributes),
            record_exception=False,
            set_status_on_exception=False,
        ) as started:
            try:
                yield Span(started)
            except BaseException as error:
                _fail(started, error)
                raise

    @contextmanager
    def within(self, traceparent: str | None) -> Iterator[None]:
        """Run statements of a stored trace, or of none."""
        token = attach(LEFT_OUT if traceparent is None else _context_of(traceparent))
        try:
            yield
        finally:
            detach(token)

    def current(self) -> str | None:
        """Return the current span as a `traceparent`, if its trace is sent."""
        found = trace.get_current_span().get_span_context()
        if not (found.is_valid and found.trace_flags.sampled):
            return None
        return f"00-{trace.format_trace_id(found.trace_id)}-{trace.format_span_id(found.span_id)}-01"

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Apply and commit a batch of events."""
        batch = _Batch()
        token, left_out = _batch.set(batch), attach(LEFT_OUT)
        try:
            yield
        except BaseException as error:
            batch.end(error)
            raise
        else:
            batch.end(None)
        finally:
            detach(left_out)
            _batch.reset(token)

    @contextmanager
    def decision(self, events: Sequence[Traced]) -> Iterator[None]:
        """Decide events of the batch."""
        batch = _batch.get()
        traced = [(event, event.traceparent) for event in events if event.traceparent] if batch else []
        if batch is None or not traced:
            yield
            return
        for event, traceparent in traced:
            if event.id not in batch.spans:  # of an earlier attempt of the transaction
                attributes = _named({"event_id": event.id, "event_type": event.type})
                batch.spans[event.id] = self._tracer.start_span(
                    "apply", _context_of(traceparent), attributes=attributes, start_time=batch.began
                )
        batch.enter(traced[0][0].id)
        contexts = [trace.set_span_in_context(batch.spans[event.id], Context()) for event, _ in traced]
        deciding = [self._tracer.start_span("decide", context) for context in contexts]
        token = attach(trace.set_span_in_context(deciding[0], Context()))  # the statements are those of the first event
        try:
            yield
        finally:
            detach(token)
            for each in deciding:
                each.end()

    def note_failure(self, event_id: str, error: BaseException) -> None:
        """Mark the span of an event of the batch as failed."""
        if (batch := _batch.get()) is not None and event_id in batch.spans:
            _fail(batch.spans[event_id], error)


class _Batch:
    """The spans of the traced events of a batch, by event id."""

    def __init__(self) -> None:
        self.began = time.time_ns()
        self.spans: dict[str, trace.Span] = {}
        self._leave: Callable[[], None] = lambda: None

    def enter(self, event_id: str) -> None:
        """Until the end of the batch, let its statements belong to the trace of this event."""
        self._leave()
        token = attach(trace.set_span_in_context(self.spans[event_id], Context()))
        self._leave = lambda: detach(token)

    def end(self, error: BaseException | None) -> None:
        """End all spans."""
        self._leave()
        for span in self.spans.values():
            if error is not None:
                _fail(span, error)
            span.end()


class _Nothing(TextMapPropagator):
    """Reads no header and writes none."""

    def extract(self, carrier: Any, context: Context | None = None, getter: Any = None) -> Context:  # noqa: ARG002
        return context or Context()

    def inject(self, carrier: Any, context: Context | None = None, setter: Any = None) -> None:
        pass

    @property
    def fields(self) -> set[str]:
        return set()


class _NewTraces(TraceIdRatioBased):
    """Selects a share of the new traces. Statements outside of a trace, as of idle loops, start none.

    Those of requests are selected before (`Tracing.watch_requests`).
    """

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        *args: Any,
        **options: Any,
    ) -> SamplingResult:
        if kind in (SpanKind.CLIENT, SpanKind.SERVER):
            return SamplingResult(Decision.DROP if kind is SpanKind.CLIENT else Decision.RECORD_AND_SAMPLE)
        return super().should_sample(parent_context, trace_id, name, kind, *args, **options)


class _Exporter(SpanExporter):
    """Exports what `SENT` allows of each span: no other attribute, message, stack trace, path or query."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._may_log = LogThrottle()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        try:
            result = self._exporter.export([_without_values(span) for span in spans])
            problem = None if result is SpanExportResult.SUCCESS else "the collector did not accept them"
        except Exception as error:  # noqa: BLE001 - the SDK would log it with its values
            result, problem = SpanExportResult.FAILURE, unexpected(error)
        if problem is not None and self._may_log():
            log.warning("traces_not_sent", spans=len(spans), error=problem)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


def _without_values(span: ReadableSpan) -> ReadableSpan:
    """Return a copy of a span with what may leave the process."""
    attributes = {name: _shortened(value) for name, value in (span.attributes or {}).items() if name in SENT}
    return ReadableSpan(
        _name(span, attributes),
        span.context,
        span.parent,
        span.resource,
        attributes,
        kind=span.kind,
        status=Status(span.status.status_code),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )


def _name(span: ReadableSpan, attributes: Mapping[str, Any]) -> str:
    """Return the name of a span. Instrumentations put the path, or the database's name, into theirs."""
    if span.instrumentation_scope is not None and span.instrumentation_scope.name == SCOPE:
        return span.name
    if span.kind is SpanKind.SERVER:
        method = next((str(attributes[name]) for name in METHODS if name in attributes), "HTTP")
        return f"{method} {attributes.get('http.route', '')}".rstrip()
    return span.name.split()[0]


def _shortened(value: Any) -> Any:
    return value[:MAX_TEXT] if isinstance(value, str) else value


def _named(attributes: Attributes) -> dict[str, Any]:
    return {NAMES[name]: value for name, value in attributes.items() if value is not None}


def _context_of(traceparent: str) -> Context:
    return _traceparents.extract({"traceparent": traceparent}, Context())


def _fail(span: trace.Span, error: BaseException) -> None:
    span.set_status(Status(StatusCode.ERROR))
    span.set_attribute(ERROR, type(error).__name__)
