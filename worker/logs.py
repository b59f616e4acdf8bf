"""Logs: events with a constant name and fields. JSON for machines, columns for a terminal."""

import logging
import sys
from traceback import extract_tb
from typing import Literal

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

# No e-mail, secret, signature or payload belongs into a log; these are the names they would come under.
FORBIDDEN = frozenset({"email", "secret", "signature", "payload", "body", "data", "password", "token", "url"})


def _drop_forbidden(_logger: WrappedLogger, _method: str, fields: EventDict) -> EventDict:
    return {name: "withheld" if name in FORBIDDEN else value for name, value in fields.items()}


def _on_one_line(_logger: WrappedLogger, _method: str, fields: EventDict) -> EventDict:
    """Spell out what breaks a line or steers a terminal: others choose ids and paths. JSON does so by itself."""
    return {name: _spelled_out(value) if isinstance(value, str) else value for name, value in fields.items()}


def _spelled_out(value: str) -> str:
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in value)


def places(error: BaseException) -> list[str]:
    """Return where in the code an error was raised, outermost first, without its message: that may quote a payload."""
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in extract_tb(error.__traceback__)]


def configure(log_format: Literal["json", "console"] | None) -> None:
    """Send every log line of this process, those of libraries included, to standard error in one format.

    None: columns on a terminal, JSON elsewhere.
    """
    log_format = log_format or ("console" if sys.stderr.isatty() else "json")
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _drop_forbidden,
    ]
    # Tracebacks without the values of variables: those would be secrets and payloads.
    plain = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    renderer: list[Processor] = (
        [structlog.processors.ExceptionRenderer(plain), structlog.processors.JSONRenderer()]
        if log_format == "json"
        else [
            _on_one_line,
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            ),
        ]
    )
    # Ours do not pass through the standard library: that made a line cost as much as the rest of a delivery.
    structlog.configure(
        processors=[*shared, *renderer],
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=False,  # a process may be configured again, as tests do
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
    # Their lines at level INFO name jobs, connections and calls one by one; ours say what happened.
    for noisy in ("rq.worker", "alembic.runtime.migration", "httpx2"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
