"""`workos-sync status`."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import click

from worker.cli import layout, options, output
from worker.cli.layout import Column, Fit, shown
from worker.cli.shared import logging_settings, migrated_engine
from worker.errors import ConfigurationError
from worker.lazy import lazy_imports
from worker.times import duration

with lazy_imports():
    from models import database, types
    from worker import bootstrap
    from worker import settings as configuration
    from worker.processes import embedded
    from worker.reports import condition
    from worker.reports import health as healths
    from worker.reports import verdict as verdicts

if TYPE_CHECKING:
    from redis import Redis
    from sqlalchemy import Engine

WATCH_SECONDS = 2.0


@click.command()
@click.option(
    "--watch",
    type=click.FloatRange(0.5, 3600),
    metavar="[SECONDS]",
    is_flag=False,
    flag_value=WATCH_SECONDS,
    help=f"Repeat on a terminal until Ctrl-C, every SECONDS seconds. Default: {WATCH_SECONDS:.0f}.",
)
@options.as_json
def status(watch: float | None, as_json: bool) -> None:
    """Report whether the mirror is trustworthy, what is wrong, and how to fix it.

    Exit code 1 if there is a problem or a warning; with --watch, if the last report has one.
    """
    if watch is not None and (as_json or not output.on_terminal()):
        raise click.UsageError("--watch needs a terminal, and cannot be combined with --json")
    settings = logging_settings()
    engine, redis = migrated_engine(), bootstrap.report_redis(embedded.redis_url(settings))
    if watch is not None:
        sys.exit(_watch(engine, redis, settings, watch))
    verdict = verdicts.judge(engine, redis, settings)
    if as_json:
        output.json(verdicts.as_report(verdict))
    elif output.on_terminal():
        output.lines(_for_people(verdict))
    else:
        output.tab_separated(("field", "value"), _flat(verdicts.as_report(verdict)))
    sys.exit(_exit_code(verdict))


def _exit_code(verdict: verdicts.Verdict) -> int:
    return 0 if verdict.severity is condition.Severity.OK else 1


def _watch(engine: Engine, redis: Redis, settings: configuration.Settings, seconds: float) -> int:
    """Show the report again and again until Ctrl-C; return the exit code of the last one."""
    from rich.console import Console  # noqa: PLC0415 - only this option needs rich, which takes long to import
    from rich.live import Live  # noqa: PLC0415 - as above
    from rich.text import Text  # noqa: PLC0415 - as above

    exit_code = 0
    with Live(console=Console(no_color=click.get_current_context().color is False), auto_refresh=False) as screen:
        try:
            while True:
                try:
                    verdict = verdicts.judge(engine, redis, settings)
                    lines, exit_code = _for_people(verdict), _exit_code(verdict)
                except database.DATABASE_ERRORS as error:
                    saw, remedy = database.what_is_wrong(error)
                    lines, exit_code = _database_away(saw, remedy), ConfigurationError.exit_code
                screen.update(Text.from_ansi("\n".join(lines)), refresh=True)
                time.sleep(seconds)
        except KeyboardInterrupt:
            return exit_code


def _database_away(saw: str, remedy: str) -> Iterator[str]:
    yield from layout.headline(condition.Severity.PROBLEM, "the database is not available", output.width())
    yield ""
    yield from layout.findings([(condition.Severity.PROBLEM, saw, remedy)], output.width())


def _for_people(verdict: verdicts.Verdict) -> Iterator[str]:
    """Yield the verdict, what is wrong with the remedies, and the figures."""
    counts = Counter(cause.condition.severity for cause in verdict.causes)
    wrong = f" ({', '.join(output.count(number, severity) for severity, number in counts.items())})" if counts else ""
    yield from layout.headline(verdict.severity, f"{verdict.headline}{wrong}", output.width())
    if verdict.causes:
        yield ""
        found = ((each.condition.severity, each.sentence, each.condition.remedy) for each in verdict.causes)
        yield from layout.findings(found, output.width())
    yield ""
    figures = dict(_figures(verdict.health))
    columns = [Column(name, fit=Fit.WRAP) for name in figures]
    yield from layout.blocks(columns, [figures], output.width())


def _figures(health: healths.Health) -> Iterator[tuple[str, str]]:
    """Yield the figures in groups, each with its heading. A group may be empty."""
    mirror, resync, workers = health.mirror, health.resync, health.lanes[0].workers
    age = mirror["age_seconds"]
    yield "mirror", _joined(mirror["state"], age is not None and f"{duration(age)} old")
    yield "complete to", shown(mirror["complete_to"])
    oldest = health.pending and f"the oldest for {duration(health.oldest_pending_seconds)}"
    yield "events", _joined(f"{health.pending} pending", oldest, f"{health.failed} failed")
    last = "none yet" if health.webhook_age_seconds is None else f"the last {duration(health.webhook_age_seconds)} ago"
    webhooks = _joined(last, health.gaps and f"{health.gaps} missing", health.late and f"{health.late} late")
    yield (
        "webhooks",
        webhooks if health.webhooks_expected else "none expected: no secret is set, and web has not run",
    )
    tail = f"read every {duration(health.tail_interval_seconds)}"
    late = health.late_events and f"{health.late_events} shown late"
    yield "events API", _joined(tail, late) if health.repairs else "off: WORKOS_API_KEY is not set"
    clock = "has never run" if health.clock_age_seconds is None else f"ran {duration(health.clock_age_seconds)} ago"
    yield "processes", f"{'? workers' if workers is None else output.count(len(workers), 'worker')}; the clock {clock}"
    if resync is not None:
        drift = resync.drift and output.count(sum(resync.drift.values()), "difference")
        withheld = resync.withheld and f"{resync.withheld} withheld"
        yield "last resync", _joined(resync.status, f"{duration(resync.age_seconds)} ago", drift, withheld)
    yield "in progress", "\n".join(map(verdicts.describe_run, health.runs))
    for name in ("domains", "joins", "revocations"):
        yield name, output.counted({state: n for state, n in sorted(getattr(health, name).items()) if n})
    yield "missing members", f"{health.missing_joins}, by their domains" if health.missing_joins else ""
    yield "without an admin", output.count(health.without_admin, "workspace") if health.without_admin else ""
    yield "hooks", "\n".join(f"{hook.name}: {hook.behind} waiting, {hook.failed} failed" for hook in health.hooks)


def _joined(*parts: object) -> str:
    """Return the parts that are not empty, with commas."""
    return ", ".join(str(part) for part in parts if part)


def _flat(report: types.Record) -> Iterator[types.Record]:
    """Yield a row for each figure, and for each problem and warning. The names are those of `--json`."""
    lists = ("problems", "warnings")
    yield {"field": "severity", "value": report["severity"]}
    for name in lists:
        yield from ({"field": name.removesuffix("s"), "value": text} for text in report[name])
    for name, value in report["mirror"].items():
        yield {"field": f"mirror.{name}", "value": value}
    for name, value in report.items():
        if name not in ("severity", "mirror", "conditions", *lists):
            values: Iterable[object] = value if isinstance(value, list) else [value]
            yield from ({"field": name, "value": each} for each in values)
