"""Structured logs: events with a constant name and fields, as JSON or as columns for a terminal."""

import logging
import sys
import time
from typing import Literal

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

FORBIDDEN = frozenset({"email", "secret", "signature", "payload", "body", "data", "password", "token", "url"})
"""Fields that are logged as `withheld`: logs must not contain e-mail addresses, secrets, signatures or payloads."""
LOG_SECONDS = 10.0
"""Minimum time between two log lines of a `Seldom`."""


class Seldom:
    """Returns true at most once in `LOG_SECONDS`: for log lines that others can cause at any rate."""

    def __init__(self) -> None:
        self._last = -LOG_SECONDS

    def __call__(self) -> bool:
        """Return whether to log now."""
        now = time.monotonic()
        if now - self._last < LOG_SECONDS:
            return False
        self._last = now
        return True


def _drop_forbidden(_logger: WrappedLogger, _method: str, fields: EventDict) -> EventDict:
    return {name: "withheld" if name in FORBIDDEN else value for name, value in fields.items()}


def _escape_control(_logger: WrappedLogger, _method: str, fields: EventDict) -> EventDict:
    """Escape line breaks and control characters, which ids and paths may contain. JSON escapes them anyway."""

    def escaped(value: str) -> str:
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in value)

    return {name: escaped(value) if isinstance(value, str) else value for name, value in fields.items()}


def configure(log_format: Literal["json", "console"] | None) -> None:
    """Send all log lines of this process, including those of libraries, to standard error in one format.

    None means `console` on a terminal and `json` elsewhere.
    """
    on_terminal = sys.stderr.isatty()
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _drop_forbidden,
    ]
    renderer: list[Processor]
    # Both write tracebacks without the values of variables, which may be secrets and payloads.
    if log_format == "console" or (log_format is None and on_terminal):
        plain = structlog.dev.plain_traceback
        renderer = [_escape_control, structlog.dev.ConsoleRenderer(colors=on_terminal, exception_formatter=plain)]
    else:
        tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        renderer = [structlog.processors.ExceptionRenderer(tracebacks), structlog.processors.JSONRenderer()]
    # Bypass the standard library's logging: with it, one line costs as much as the rest of a delivery.
    structlog.configure(
        processors=[*shared, *renderer],
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=False,  # tests configure a process more than once
    )
    handler = logging.StreamHandler(sys.stderr)
    foreign = [*shared, structlog.stdlib.add_logger_name]
    processors = [structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer]
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=foreign, processors=processors))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    # At level INFO these libraries log every job, connection and call.
    for noisy in ("rq.worker", "alembic.runtime.migration", "httpx2"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
