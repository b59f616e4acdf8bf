"""Structured logs: events with a constant name and fields, as JSON or as columns for a terminal."""

import linecache
import logging
import re
import sys
from typing import Literal

from worker.errors import causes_of, place_in, stack_of, unexpected
from worker.lazy import without_package

with without_package("rich"):  # it would print tracebacks, which our logs do not contain, and takes 0.07 s to import
    import structlog
    from structlog.typing import EventDict, Processor, WrappedLogger

FORBIDDEN = frozenset({"email", "secret", "signature", "payload", "body", "data", "password", "token", "url"})
"""Fields that are logged as `withheld`: logs must not contain e-mail addresses, secrets, signatures or payloads."""

ARGUMENT = re.compile(r"%(\(\w+\))?[-+ #0-9.]*[a-zA-Z]")
"""A place for an argument in a message of the standard library's logging."""


def _drop_forbidden(_logger: WrappedLogger, _method: str, fields: EventDict) -> EventDict:
    return {name: "withheld" if name in FORBIDDEN else value for name, value in fields.items()}


def _escape_control(_logger: WrappedLogger, _method: str, fields: EventDict) -> EventDict:
    """Escape line breaks and control characters, which ids and paths may contain. JSON escapes them anyway."""

    def escaped(value: str) -> str:
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in value)

    return {name: escaped(value) if isinstance(value, str) else value for name, value in fields.items()}


def _describe_exception(_logger: WrappedLogger, _method: str, fields: EventDict) -> EventDict:
    """Replace an exception by the classes and places of it and its causes: messages quote values."""
    given = fields.pop("exc_info", None)
    error = given[1] if isinstance(given, tuple) else given if isinstance(given, BaseException) else sys.exception()
    if given and error is not None:
        fields.update(error="; caused by ".join(map(unexpected, causes_of(error))), stack=stack_of(error))
    return fields


def _describe_foreign(_logger: WrappedLogger, _method: str, fields: EventDict) -> EventDict:
    """Describe a log line of a library by its message, with "…" for its arguments, and its place in the code.

    A message that does not appear in the library's code was composed of values, and is left out.
    """
    record: logging.LogRecord = fields["_record"]
    message: object = record.msg
    first_line = message.partition("\n")[0] if isinstance(message, str) else ""
    known = bool(first_line) and any(first_line in line for line in linecache.getlines(record.pathname))
    fields["event"] = ARGUMENT.sub("…", first_line) if known else "library_message"
    fields["at"] = place_in(record.pathname, record.lineno, record.funcName)
    return fields


def configure(log_format: Literal["json", "console"] | None, *, brief: bool = False) -> None:
    """Send all log lines of this process, including those of libraries, to standard error in one format.

    None means `console` on a terminal and `json` elsewhere. With `brief`, a terminal shows only warnings and errors.
    """
    on_terminal = sys.stderr.isatty()
    level = logging.WARNING if brief and on_terminal else logging.INFO
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _drop_forbidden,
        _describe_exception,
    ]
    renderer: list[Processor]
    if log_format == "console" or (log_format is None and on_terminal):
        renderer = [_escape_control, structlog.dev.ConsoleRenderer(colors=on_terminal)]
    else:
        renderer = [structlog.processors.JSONRenderer()]
    # Bypass the standard library's logging: with it, one line costs as much as the rest of a delivery.
    structlog.configure(
        processors=[*shared, *renderer],
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=False,  # tests configure a process more than once
    )
    handler = logging.StreamHandler(sys.stderr)
    foreign = [_describe_foreign, *shared, structlog.stdlib.add_logger_name]
    processors = [structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=foreign, processors=processors, use_get_message=False
    )
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    # At level INFO these libraries log every job, connection and call.
    for noisy in ("rq.worker", "alembic.runtime", "httpx2"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
