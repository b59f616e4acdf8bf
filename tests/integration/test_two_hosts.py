"""Two hosts share the work; one is cut off and returns. They run in network namespaces."""

import subprocess
import sys

import pytest

from tests.benchmarks.two_hosts import why_not
from tests.support.stack.machine import ROOT

pytestmark = pytest.mark.long


@pytest.mark.timeout(600)
def test_one_host_continues_while_the_other_is_cut_off() -> None:
    if reason := why_not():
        pytest.skip(reason)
    command = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.two_hosts"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=590, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "host b back" in ran.stdout
    assert "the mirror is that of an undisturbed drain" in ran.stdout
