"""docs/operations.md explains every alert, problem and warning, and what to do about it."""

import re
from pathlib import Path

from worker.reports.health import PROBLEMS, WARNINGS

DOCS = Path(__file__).parents[2] / "docs"
ALERTS = re.findall(r"^ +- alert: (\w+)$", (DOCS / "deploy" / "alerts.yml").read_text(), re.MULTILINE)
ALARMS = (DOCS / "operations.md").read_text().split("## Alarms\n")[1].split("\n## ")[0]
ENTRIES = ALARMS.split("\n### ")[1:]


def test_each_alert_problem_and_warning_has_exactly_one_entry() -> None:
    named = [name for entry in ENTRIES for name in re.findall(r"`(\w+)`", entry.splitlines()[2])]
    assert sorted(named) == sorted([*ALERTS, *PROBLEMS, *WARNINGS])


def test_each_entry_says_what_it_means_and_what_to_do() -> None:
    assert [entry.splitlines()[0] for entry in ENTRIES if not ("**Means:** " in entry and "**Do:** " in entry)] == []


def test_each_entry_is_as_urgent_as_its_alert() -> None:
    rules = (DOCS / "deploy" / "alerts.yml").read_text().split("- alert: ")[1:]
    urgency = {rule.split()[0]: re.findall(r"severity: (\w+)", rule) for rule in rules}
    documented = {entry.splitlines()[2].split("`")[-2]: entry.splitlines()[2].split(" · ")[-1:] for entry in ENTRIES}
    assert documented == urgency
