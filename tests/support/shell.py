"""The commands of a page in the documentation, run as a person types them."""

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil

from tests.support.processes import alive, environment, suppress_gone

END = "\x1e"
"""Printed after each command, before its exit code."""


class Step(NamedTuple):
    """A command, and the output that the page shows for it; empty if it shows none."""

    command: str
    output: str


def read_steps(text: str) -> list[Step]:
    """The steps of the console blocks: `$` starts a command, indented lines continue it, other lines are output."""
    text = "".join(re.findall(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    found = re.findall(r"^\$ (.*(?:\n .*)*)\n((?:[^$\s].*\n)*)", text, re.MULTILINE)
    assert "".join(f"$ {command}\n{output}" for command, output in found) == text, "a line belongs to no step"
    return [Step(*step) for step in found]


class Shell:
    """One bash that runs commands in turn, as a person types them: folder, variables and background jobs persist."""

    def __init__(self, folder: Path) -> None:
        settings = {name: value for name, value in environment().items() if not name.startswith("PYTHON")}
        settings["PIP_COMPILE"] = "0"  # the commands compile the tenth that they import
        self._log = folder / "stderr.log"
        with self._log.open("wb") as log:
            self._bash = subprocess.Popen(
                ["bash", "-o", "pipefail"],  # noqa: S607
                cwd=folder,
                env=settings,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def run(self, command: str) -> str:
        """Run a command to its end and return what it printed; AssertionError unless it succeeds."""
        assert self._bash.stdin is not None and self._bash.stdout is not None
        self._bash.stdin.write(f"{command}\nprintf '{END}%d\\n' $?\n")
        self._bash.stdin.flush()
        printed = ""
        while END not in printed:
            line = self._bash.stdout.readline()
            assert line, f"the shell ended in: {command}\n{self._errors()}"
            printed += line
        output, _, code = printed.partition(END)
        assert int(code) == 0, f"exit code {code.strip()}: {command}\n{output}{self._errors()}"
        return output

    def prints(self, command: str, output: str) -> bool:
        """Whether a command prints exactly this."""
        return self.run(command) == output

    def _errors(self) -> str:
        return self._log.read_text()[-2000:]

    def close(self) -> None:
        """End the shell."""
        self._bash.communicate()


def processes_in(folder: Path) -> list[psutil.Process]:
    """The living processes whose working directory is `folder` or below it."""
    found = psutil.process_iter(["cwd"])
    return [each for each in found if Path(each.info["cwd"] or "/").is_relative_to(folder) and alive(each)]


@contextmanager
def shell_in(folder: Path) -> Iterator[Shell]:
    """A shell in a folder; at the end, all processes in the folder are killed."""
    opened = Shell(folder)
    try:
        yield opened
    finally:
        for process in processes_in(folder):
            with suppress_gone():
                process.kill()
        opened.close()


def files_of(text: str) -> dict[str, str]:
    """The files of a page: each block below a paragraph that begins with the file's name in code."""
    return dict(re.findall(r"^`([\w.]+)`[^\n`]*:\n\n```\w+\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
