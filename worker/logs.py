"""Structured logs: events with a constant name and fields, as JSON or, on a terminal, as columns."""

import logging
import sys
from traceback import extract_tb
from typing import Literal

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

# Logs must not contain e-mail addresses, secrets, signatures or payloads. Fields with these names are withheld.
FORBIDDEN = frozenset({"email", "secret", "signature", "payload", "body", "data", "password", "token", "url"})


def _drop_forbidden(_logger: WrappedLogger, _method: str, fields: EventDict) -> EventDict:
    return {name: "withheld" if name in FORBIDDEN else value for name, value in fields.items()}


def _escape_control(_logger: WrappedLogger, _method: str, fields: EventDict) -> EventDict:
    """Escape line breaks and control characters, which ids and paths may contain. JSON escapes them anyway."""
    return {name: _escaped(value) if isinstance(value, str) else value for name, value in fields.items()}


def _escaped(value: str) -> str:
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in value)


def places(error: BaseException) -> list[str]:
    """Return the stack of an error, outermost call first, without its message, which may quote a payload."""
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in extract_tb(error.__traceback__)]


def configure(log_format: Literal["json", "console"] | None) -> None:
    """Send all log lines of this process, including those of libraries, to standard error in one format.

    Args:
        log_format: None means `console` on a terminal and `json` elsewhere.
    """
    log_format = log_format or ("console" if sys.stderr.isatty() else "json")
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _drop_forbidden,
    ]
    # Tracebacks without the values of variables, which may be secrets and payloads.
    tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    renderer: list[Processor] = (
        [structlog.processors.ExceptionRenderer(tracebacks), structlog.processors.JSONRenderer()]
        if log_format == "json"
        else [
            _escape_control,
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            ),
        ]
    )
    # Our lines bypass the standard library: with it, one line costs as much as the rest of a delivery.
    structlog.configure(
        processors=[*shared, *renderer],
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=False,  # tests configure a process more than once
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    # At level INFO these libraries log every job, connection and call.
    for noisy in ("rq.worker", "alembic.runtime.migration", "httpx2"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
