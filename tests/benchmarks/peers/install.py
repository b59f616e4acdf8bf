"""Installs peers into a temporary folder, from the registries that npm and pip are configured to use."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

NODE_PACKAGES = ("@supabase/stripe-sync-engine@0.48.5", "stripe@23.1.0", "pg@8.23.1")
PYTHON_PACKAGES = (
    "procrastinate==3.10.0",
    "psycopg[binary]==3.3.9",
    "psycopg-pool==3.3.3",
    "starlette==1.10.0",
    "uvicorn==0.54.0",
    "httptools==0.9.0",
    "uvloop==0.23.0",
)
LONGEST_SECONDS = 60.0
"""For one command. Both take a few seconds if the registry answers."""


class MissingError(Exception):
    """A peer cannot be installed here; the message says why."""


def node_modules(folder: Path) -> Path:
    """Install the Node packages under `folder` unless they are there, and return their `node_modules`.

    Raises:
        MissingError: node or npm is missing, or the packages cannot be installed.
    """
    made = folder / "node"
    if not (made / "done").exists():
        for program in ("node", "npm"):
            if shutil.which(program) is None:
                raise MissingError(f"{program} is missing")
        made.mkdir(exist_ok=True)
        quiet = (
            "--no-audit",
            "--no-fund",
            "--no-update-notifier",
            "--ignore-scripts",
            "--loglevel=error",
            "--fetch-retries=1",
        )
        _run(["npm", "install", "--no-save", *quiet, *NODE_PACKAGES], made)
        (made / "done").touch()
    return made / "node_modules"


def python(folder: Path) -> Path:
    """Make a virtual environment with the Python packages under `folder` unless it is there; return its Python.

    Raises:
        MissingError: the packages cannot be installed.
    """
    made = folder / "python"
    program = made / "bin" / "python"
    if not (made / "done").exists():
        _run([sys.executable, "-m", "venv", str(made)], folder)
        quiet = ("--quiet", "--disable-pip-version-check", "--no-input", "--only-binary=:all:", "--retries=1")
        _run([str(program), "-m", "pip", "install", *quiet, *PYTHON_PACKAGES], folder)
        (made / "done").touch()
    return program


def _run(command: Sequence[str], folder: Path) -> None:
    name = "pip" if "pip" in command else Path(command[0]).name
    try:
        ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=LONGEST_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise MissingError(f"{name} did not end within {LONGEST_SECONDS:.0f} s") from error
    if ran.returncode:
        raise MissingError(f"{name} ended with code {ran.returncode}: {_reason(ran.stdout + ran.stderr)}")


def _reason(output: str) -> str:
    """Return the first error that a program printed, or else its last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["it printed nothing"]
    return next((line for line in lines if line.lower().startswith(("npm error", "error"))), lines[-1])
