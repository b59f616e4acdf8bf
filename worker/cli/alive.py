"""`workos-sync alive`."""

from __future__ import annotations  # so that an annotation imports nothing

import click

from worker.cli import options
from worker.errors import OperatorError
from worker.lazy import lazy_imports

with lazy_imports():
    from worker.cli import output
    from worker.processes import alive as beats


@click.command()
@click.argument("command", type=click.Choice(["worker", "clock", "up"]))
@options.as_json
def alive(command: str, as_json: bool) -> None:
    """Check that the processes of a command run. For probes on the same machine, in the same working directory.

    Asks neither the database nor Redis: a process that waits for one of them is alive, and so is one that is being
    restarted or is stopping. Exit code 1 if a process has been dead or frozen for 20 seconds. For web, use GET
    /healthz.
    """
    silent = beats.silent_processes(beats.file_of(command))
    if silent is None:
        raise OperatorError(f"{command} is not running in this directory")
    if silent:
        found = ", ".join(f"process {pid} for {seconds:.0f} s" for pid, seconds in silent)
        raise OperatorError(f"{command} is dead or frozen: {found}; restart it")
    output.result(f"{command} is alive", {"alive": True}, as_json=as_json)
