"""A collector of OpenTelemetry that keeps the spans it receives."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue

from tests.support.receiver import Receiver, receiving


@dataclass(frozen=True)
class Received:
    """A span. `parent` is empty for the first span of a trace; `resource` has the attributes of its process."""

    trace: str
    id: str
    parent: str
    name: str
    start: int
    attributes: dict[str, Any]
    resource: dict[str, Any]
    is_error: bool


class Collector:
    """Receives spans at `url`."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self.url = f"http://{receiver.place}"

    @property
    def raw(self) -> bytes:
        """Everything that it received."""
        return b"".join(path.encode() + body for path, body in self._receiver.accepted)

    @property
    def spans(self) -> list[Received]:
        """All spans, in the order in which they began."""
        found = [
            Received(
                span.trace_id.hex(),
                span.span_id.hex(),
                span.parent_span_id.hex(),
                span.name,
                span.start_time_unix_nano,
                _values(span.attributes),
                _values(group.resource.attributes),
                span.status.code == span.status.STATUS_CODE_ERROR,
            )
            for path, body in self._receiver.accepted
            if path == "/v1/traces"
            for group in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in group.scope_spans
            for span in scope.spans
        ]
        return sorted(found, key=lambda span: span.start)

    def refuse(self, status: int) -> None:
        """Answer the next posts with this status."""
        self._receiver.answers.extend([status] * 100)

    def named(self, name: str) -> list[Received]:
        """The spans of a name."""
        return [span for span in self.spans if span.name == name]


def _values(attributes: Any) -> dict[str, Any]:
    def value_of(attribute: KeyValue) -> Any:
        kind = attribute.value.WhichOneof("value")
        return getattr(attribute.value, kind) if kind else None

    return {attribute.key: value_of(attribute) for attribute in attributes}


@contextmanager
def collecting() -> Iterator[Collector]:
    """Run a collector."""
    with receiving() as receiver:
        yield Collector(receiver)
