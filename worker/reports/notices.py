"""The conditions that hold, as notifications report them: only with values that may leave the installation."""

from string import Formatter

from redis import Redis
from sqlalchemy import Engine

from worker.notify.plan import Active
from worker.reports.condition import PUBLIC_VALUES, Measured
from worker.reports.conditions import measured
from worker.reports.health import Health, check_health
from worker.settings import Settings

OVERVIEW = "/ops/"


def conditions_to_report(engine: Engine, redis: Redis, settings: Settings) -> list[Active]:
    """Measure the installation, and return what holds; arguments and errors are those of `check_health`."""
    return notices(check_health(engine, redis, settings))


def notices(health: Health) -> list[Active]:
    """Return all conditions that hold. A cause mentions those that it explains, which are marked as explained."""
    found = measured(health)
    return [_notice(each, found) for each in found]


def _notice(each: Measured, found: list[Measured]) -> Active:
    condition = each.condition
    effects = [_sentence(other) for other in found if other.because_of == condition.name]
    public = _fields(condition.page) <= PUBLIC_VALUES
    return Active(
        name=condition.name,
        subject=str(each.values[condition.subject]) if condition.subject else "",
        severity=each.severity.value,
        sentence=_sentence(each) + (f" (therefore {'; '.join(effects)})" if effects else ""),
        remedy=condition.remedy.format_map(each.values),
        page=each.page if public else OVERVIEW,
        after=condition.delay(each.severity),
        explained=each.because_of is not None,
    )


def _sentence(each: Measured) -> str:
    template = each.condition.notice or each.condition.sentence
    return template.format_map({name: value for name, value in each.values.items() if name in PUBLIC_VALUES})


def _fields(template: str) -> set[str]:
    """Return the names of the values in a template."""
    return {name for _, name, _, _ in Formatter().parse(template) if name}
