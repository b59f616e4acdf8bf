"""docs/deploy/systemd: systemd accepts the units without a warning, and they wait long enough at a stop."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from worker.processes.supervisor import GRACE_SECONDS

UNITS = Path(__file__).parents[2] / "docs" / "deploy" / "systemd"
ANALYZE = shutil.which("systemd-analyze")
PROGRAM = "/opt/workos-sync/current/bin/workos-sync"


@pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed (Debian: systemd)")
def test_systemd_accepts_the_units_without_a_warning(tmp_path: Path) -> None:
    shutil.copytree(UNITS, tmp_path, dirs_exist_ok=True)
    for unit in tmp_path.glob("*.service"):
        unit.write_text(unit.read_text().replace(PROGRAM, "/bin/true"))
    units = sorted(path for path in tmp_path.iterdir() if path.suffix in {".service", ".socket"})
    verify = subprocess.run(
        [str(ANALYZE), "verify", *map(str, units)],
        env=os.environ | {"SYSTEMD_UNIT_PATH": f"{tmp_path}:"},  # after it systemd's own
        capture_output=True,
        text=True,
        check=False,
    )
    assert len(units) == 7 and (verify.returncode, verify.stdout + verify.stderr) == (0, "")


@pytest.mark.parametrize("name", ["up", "worker"])
def test_systemd_waits_until_a_worker_has_finished_its_batch(name: str) -> None:
    unit = (UNITS / f"workos-sync-{name}.service").read_text()
    patience = re.search(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    assert patience and int(patience[1]) > GRACE_SECONDS
    assert "\nKillMode=mixed\n" in unit, "a second SIGTERM would interrupt the batch"
