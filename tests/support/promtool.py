"""The alert rules that fire for given metrics, as Prometheus's promtool evaluates them."""

import json
import re
import subprocess
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

RULES = Path(__file__).parents[2] / "docs" / "deploy" / "alerts.yml"
MINUTES = 420
"""Minutes that the metrics stay unchanged: longer than any rule waits."""


def _series(text: str) -> dict[str, float]:
    """Series → value, with names as Prometheus writes them."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{name}={json.dumps(value)}" for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


def firing(folder: Path, before: str, after: str, *, up: bool = True) -> set[str]:
    """The alerts that fire when /metrics said `before` for half an hour, and `after` for some time or for seven hours.

    The test expects that nothing fires; promtool's complaint names the alerts that did.
    """
    earlier, later = _series(before), _series(after)
    series = [
        {"series": name, "values": f"{earlier.get(name, '_')}x30 {later.get(name, '_')}x{MINUTES}"}
        for name in sorted(earlier | later)
    ]
    series.append({"series": 'up{job="workos-sync"}', "values": f"1x30 {int(up)}x{MINUTES}"})
    fired = f'count by (alertname) (max_over_time(ALERTS{{alertstate="firing"}}[{MINUTES}m]))'
    nothing = {"expr": fired, "eval_time": f"{MINUTES + 30}m", "exp_samples": []}
    case = {"interval": "1m", "input_series": series, "promql_expr_test": [nothing]}
    file = folder / "alarms.json"
    # Each minute, as Prometheus does, would find the same alerts and take five times as long.
    file.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "5m", "tests": [case]}))
    done = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True, check=False)  # noqa: S607 - found on the PATH
    assert "SUCCESS" in done.stdout or "got:" in done.stderr, done.stdout + done.stderr
    return set(re.findall(r'alertname="(\w+)"', done.stderr.partition("got:")[2]))
