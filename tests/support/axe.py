"""The accessibility checker axe-core, fetched from the npm registry, which no test needs to pass."""

import shutil
import subprocess
import tarfile
import tempfile
from functools import cache
from pathlib import Path

PACKAGE = "axe-core@4"
RUN = """axe.run().then(found => found.violations.map(
    each => `${each.id}: ${each.nodes.map(node => node.html).join(" ")}`))"""


@cache
def axe_source() -> str | None:
    """The script of axe-core; None, with the reason printed, if it cannot be fetched."""
    if (npm := shutil.which("npm")) is None:
        print("axe-core is not run: npm is not installed (Debian: apt-get install npm)")
        return None
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", "--silent", PACKAGE]
        fetched = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
        if fetched.returncode:
            print(f"axe-core is not run: npm cannot fetch it: {fetched.stderr.strip()[-200:]}")
            return None
        with tarfile.open(Path(folder) / fetched.stdout.strip()) as package:
            script = package.extractfile("package/axe.min.js")
            assert script
            return script.read().decode()
