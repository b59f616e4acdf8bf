"""The systems that can run here, and why the others cannot."""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.peers.install import MissingError, node_modules, python
from tests.benchmarks.peers.node import NODE, node
from tests.benchmarks.peers.ours import ours
from tests.benchmarks.peers.procrastinate import PROCRASTINATE, procrastinate
from tests.benchmarks.peers.system import System
from tests.benchmarks.runner import OURS
from tests.benchmarks.servers import Bench

SYSTEMS: dict[str, Callable[[Bench], AbstractContextManager[System]]] = {
    OURS: ours,
    NODE: node,
    PROCRASTINATE: procrastinate,
}
INSTALLERS: dict[str, Callable[[Path], object]] = {NODE: node_modules, PROCRASTINATE: python}


@dataclass(frozen=True)
class Available:
    """Names of the peers that can run here, and a note on the others for the name of a row (or nothing)."""

    peers: list[str]
    note: str

    @property
    def names(self) -> list[str]:
        """Return the names of all systems that can run here."""
        return [OURS, *self.peers]


def available(bench: Bench) -> Available:
    """Install the peers into the folder of this run, and print why one is missing."""
    peers, missing = list[str](), list[str]()
    for name, install in INSTALLERS.items():
        try:
            install(bench.folder)
            peers.append(name)
        except MissingError as error:
            missing.append(f"; without {name}")
            print(f"{name} is missing: {error}", file=sys.stderr, flush=True)
    return Available(peers, "".join(missing))
