"""docs/deploy/systemd: units that systemd takes without a word, and that wait longer than the processes do."""

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


@pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not here (Debian: systemd)")
def test_systemd_has_nothing_to_say_against_the_units(tmp_path: Path) -> None:
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
    assert len(units) == 5 and (verify.returncode, verify.stdout + verify.stderr) == (0, "")


def test_systemd_kills_no_worker_that_still_ends_its_batch() -> None:
    unit = (UNITS / "workos-sync-worker.service").read_text()
    patience = re.search(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    assert patience and int(patience[1]) > GRACE_SECONDS
    assert "\nKillMode=mixed\n" in unit, "a second SIGTERM would break off what the first lets end"
