"""docs/operations.md and docs/deploy/alerts.yml say the same as the table of conditions."""

import re
from datetime import timedelta
from pathlib import Path
from string import Formatter

import pytest

from worker.reports.condition import PUBLIC_VALUES, Condition, Severity
from worker.reports.conditions import CONDITIONS

DOCS = Path(__file__).parents[2] / "docs"
RULES = {
    rule.split()[0]: dict(re.findall(r"^ +(\w+): (.+)$", rule, re.MULTILINE))
    for rule in (DOCS / "deploy" / "alerts.yml").read_text().split("- alert: ")[1:]
}
ALERTS = (DOCS / "operations.md").read_text().split("## Alerts\n")[1].split("\n## ")[0]
ENTRIES = {entry.splitlines()[0]: entry for entry in ALERTS.split("\n### ")[1:]}
UNITS = {"s": timedelta(seconds=1), "m": timedelta(minutes=1), "h": timedelta(hours=1)}
URGENCY = {Severity.WARNING: "ticket", Severity.PROBLEM: "page"}
"""The label `severity` of an alert rule."""
ONLY_PROMETHEUS = {
    "WorkosSyncDown": ("The web process does not answer", "page"),
    "WorkosSyncDatabaseDown": ("The database does not answer", "page"),
    "WorkosSyncRateLimited": ("WorkOS limits our calls", "ticket"),
}
"""Alerts that no process of ours can decide: it is down, cannot measure, or the answer needs a history."""
EXPECTED = {
    condition.alert(severity): (condition, severity) for condition in CONDITIONS for severity in condition.severities
}


def fields(*templates: str) -> set[str]:
    """The names of the values in some texts."""
    return {name for template in templates for _, name, _, _ in Formatter().parse(template) if name}


@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda condition: condition.name)
def test_notifications_contain_only_values_that_may_leave_the_installation(condition: Condition) -> None:
    assert fields(condition.notice or condition.sentence) <= PUBLIC_VALUES
    assert fields(condition.remedy) <= PUBLIC_VALUES | {"remedy"}  # a constant of ours, or the id of a run


def test_conditions_have_different_names() -> None:
    assert len({condition.name for condition in CONDITIONS}) == len(CONDITIONS)


def test_each_condition_has_an_alert_for_each_severity_and_no_other() -> None:
    assert RULES.keys() == EXPECTED.keys() | ONLY_PROMETHEUS.keys()


@pytest.mark.parametrize("alert", EXPECTED)
def test_an_alert_says_what_its_condition_says(alert: str) -> None:
    condition, severity = EXPECTED[alert]
    rule = RULES[alert]
    assert rule["expr"] == f'max(workos_sync_problem{{name="{condition.name}",severity="{severity}"}}) == 1'
    assert rule["labels"] == f"{{severity: {URGENCY[severity]}}}"
    assert (rule["summary"], rule["runbook"]) == (condition.measured, condition.runbook)
    number, unit = re.fullmatch(r"(\d+)([smh])", rule["for"]).groups()  # type: ignore[union-attr]
    assert condition.delay(severity) == int(number) * UNITS[unit]
    assert rule["remedy"]


def test_the_runbook_has_an_entry_for_each_condition_and_alert_and_no_other() -> None:
    sections = {condition.section for condition in CONDITIONS} | {section for section, _ in ONLY_PROMETHEUS.values()}
    assert ENTRIES.keys() == sections


@pytest.mark.parametrize("section", ENTRIES)
def test_an_entry_names_its_conditions_and_how_urgent_they_are(section: str) -> None:
    named = [_line(condition) for condition in CONDITIONS if condition.section == section]
    named += [f"`{alert}` · {urgency}" for alert, (where, urgency) in ONLY_PROMETHEUS.items() if where == section]
    assert ENTRIES[section].splitlines()[2] == "; ".join(named)


def _line(condition: Condition) -> str:
    alerts = [f"`{condition.alert(severity)}` · {URGENCY[severity]}" for severity in reversed(condition.severities)]
    return f"`{condition.name}` · {'; '.join(alerts)}"


def test_each_entry_says_what_it_means_and_what_to_do() -> None:
    assert [name for name, entry in ENTRIES.items() if not ("**Means:** " in entry and "**Do:** " in entry)] == []


def test_each_condition_links_to_its_entry() -> None:
    anchors = {re.sub(r"[^\w\- ]", "", section.lower()).replace(" ", "-") for section in ENTRIES}
    assert {condition.runbook.split("#")[1] for condition in CONDITIONS} <= anchors
