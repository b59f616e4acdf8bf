"""`workos-sync migrate` and `doctor`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

import click

from models.enums import Action
from worker.cli import layout, options, output
from worker.cli.layout import Column, Fit
from worker.cli.shared import actor, logging_settings, open_database
from worker.errors import ConfigurationError
from worker.lazy import lazy_imports

with lazy_imports():
    from models import database as transactions
    from models import migrate as migrations
    from models import revisions
    from worker import audit, bootstrap, database, logs, metrics, webhook_endpoints
    from worker import settings as configuration
    from worker.processes import embedded
    from worker.repair import environment
    from worker.reports import doctor as checking

if TYPE_CHECKING:
    from sqlalchemy import Connection

NEEDED = {".env", "DATABASE_URL", "DATABASE_SCHEMA", "REDIS_URL"}
"""While one of these is invalid, `doctor` checks neither database nor Redis, because it might check the wrong ones."""
CHECKED_SETTINGS = {
    "webhook secret": {"WORKOS_WEBHOOK_SECRETS"},
    "OPS_TOKENS": {"OPS_TOKENS"},
    "API_TOKENS": {"API_TOKENS"},
    "API_REFRESH_NAMES": {"API_REFRESH_NAMES", "API_TOKENS"},
    "WorkOS key": {"WORKOS_API_KEY", "WORKOS_CLIENT_ID", "WORKOS_BASE_URL"},
}
"""Checks of `doctor` that report whether settings are set."""


@click.command()
@click.option("--print-sql", is_flag=True, help="Print a script for psql instead, without connecting to anything.")
@click.option(
    "--from", "start", metavar="REVISION", help="With --print-sql: revision of the database. Default: a new database."
)
@click.option("--rename-environment", is_flag=True, help="Let this environment take over the database of another one.")
@options.reason
@options.as_json
def migrate(*, print_sql: bool, start: str | None, rename_environment: bool, reason: str | None, as_json: bool) -> None:
    """Upgrade the database to the newest revision, and record ENVIRONMENT_NAME in it.

    Safe to run at any time, even on two hosts at once. Refuses the database of another environment. Use
    --rename-environment if the environment has a new name, or for a copy of another environment's database.
    """
    settings = logging_settings()
    if start is not None and not print_sql:
        raise click.UsageError("--from needs --print-sql")
    import_module("worker.kinds")  # its tables have indexes too
    if print_sql:
        _print_sql(start, settings)
        return
    engine = open_database(settings)
    if not rename_environment:
        database.require_own_database(engine, settings.environment_name)
    try:
        migrations.upgrade(engine, noted=partial(_note_migration, actor(reason)))
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    database.record_environment(engine, settings.environment_name, rename=rename_environment)
    if rename_environment:
        transactions.in_transaction(engine, _note_rename, actor(reason), settings.environment_name)
    revision = revisions.newest_revision()
    output.result(f"the database is at revision {revision}", {"revision": revision}, as_json=as_json)


def _print_sql(start: str | None, settings: configuration.Settings) -> None:
    try:
        script = migrations.upgrade_sql(start, settings.database_schema)
    except ValueError as error:
        raise ConfigurationError(f"--from: {error}") from error
    click.echo(script, nl=False)


def _note_migration(by: audit.Actor, tx: Connection, before: str | None, after: str) -> None:
    audit.note(tx, by, Action.MIGRATE, before=before, after=after)


def _note_rename(tx: Connection, by: audit.Actor, name: str | None) -> None:
    audit.note(tx, by, Action.MIGRATE, environment=name)


@click.command()
@options.as_json
def doctor(as_json: bool) -> None:
    """Check everything this installation needs.

    Reports each check as ok, as a warning or as a failure, with the remedy. Exit code 1 if there is a failure.
    """
    reading = configuration.read_settings()
    logs.configure(reading.settings.log_format, brief=True)
    checks = [*checking.check_settings(reading), *_check_installation(reading)]
    worst_first = list(checking.Level)[::-1]
    checks.sort(key=lambda check: worst_first.index(check.level))
    if as_json:
        output.json([check._asdict() for check in checks])
    elif output.on_terminal():
        output.lines(_for_people(checks))
    else:
        output.tab_separated(("level", "name", "saw", "remedy"), [check._asdict() for check in checks])
    sys.exit(1 if any(check.level is checking.Level.FAILURE for check in checks) else 0)


def _for_people(checks: list[checking.Check]) -> Iterator[str]:
    """Yield the verdict, failures and warnings with remedies, and passed checks. `checks` starts with the worst."""
    wrong = [check for check in checks if check.level is not checking.Level.OK]
    counts = (output.count(number, level) for level, number in Counter(check.level for check in wrong).items())
    text = f"{', '.join(counts)} in {len(checks)} checks" if wrong else f"all {len(checks)} checks passed"
    yield from layout.headline(checks[0].level, text, output.width())
    if wrong:
        yield ""
        found = ((check.level, f"{check.name}: {check.saw}", check.remedy) for check in wrong)
        yield from layout.findings(found, output.width())
    if passed := {check.name: check.saw for check in checks if check.level is checking.Level.OK}:
        yield ""
        yield from layout.blocks([Column(name, name, fit=Fit.WRAP) for name in passed], [passed], output.width())


def _check_installation(reading: configuration.Reading) -> Iterator[checking.Check]:
    """Run the checks that do not depend on invalid settings. Others would report such a setting as not set."""
    settings, wrong = reading.settings, {problem.setting for problem in reading.problems}
    if first := sorted(wrong & NEEDED):
        yield checking.Check("other checks", checking.Level.WARNING, "not run", f"correct {' and '.join(first)} first")
        return
    engine = open_database(settings)
    redis = bootstrap.report_redis(embedded.redis_url(settings))
    callable_ = settings.repairs and not wrong & CHECKED_SETTINGS["WorkOS key"]
    connect_workos = (lambda: environment.connect(settings, redis, metrics.Counters(redis))) if callable_ else None
    for check in checking.run_checks(engine, redis, settings, connect_workos, _ask_route_if_reachable):
        if not wrong & CHECKED_SETTINGS.get(check.name, set()):
            yield check


def _ask_route_if_reachable(url: str) -> int | None:
    with suppress(*webhook_endpoints.NO_ANSWER):
        return webhook_endpoints.ask_route(url)
    return None
