"""Redis fails over: the old primary becomes a replica of another server, and REDIS_URL then leads to that server."""

import json
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from redis import Redis

from models.database import open_engine
from tests.support import JSON, statuses
from tests.support.deliveries import deliver
from tests.support.processes import Commands, Valkey, eventually
from tests.support.stack.machine import free_ports
from tests.support.stories import encoded, new_users
from worker.redis_client import NotPrimaryError, open_redis


class Name:
    """A host name as in REDIS_URL: existing connections stay, new ones lead to the server it points to now."""

    def __init__(self, link: Path) -> None:
        self._link = link
        self.url = f"unix://{link}"

    def point_to(self, server: Valkey) -> None:
        following = self._link.with_suffix(".new")
        following.symlink_to(server.url.removeprefix("unix://"))
        following.replace(self._link)


@pytest.fixture
def pair() -> Iterator[tuple[Valkey, Valkey, Name]]:
    """A primary, another server that may take its place, and the name, which points to the primary."""
    with tempfile.TemporaryDirectory(prefix="wos-") as made:  # a socket's path must be short
        home, ports = Path(made), free_ports(2)
        servers = [Valkey(home / str(place), port) for place, port in enumerate(ports)]
        for server in servers:
            server.start()
        name = Name(home / "name.sock")
        name.point_to(servers[0])
        yield servers[0], servers[1], name
        for server in servers:
            server.kill()


def replica(old: Valkey, new: Valkey) -> None:
    old.follow(new)


def replica_without_its_primary(old: Valkey, _new: Valkey) -> None:
    with old.client() as redis:
        redis.config_set("replica-serve-stale-data", "no")
        redis.replicaof("127.0.0.1", 1)


def without_enough_replicas(old: Valkey, _new: Valkey) -> None:
    with old.client() as redis:
        redis.config_set("min-replicas-to-write", 1)


def by_command(redis: Redis) -> None:
    redis.incr("k")


def by_transaction(redis: Redis) -> None:
    with redis.pipeline(transaction=True) as pipeline:
        pipeline.get("k")
        pipeline.incr("k")
        pipeline.execute()


def by_reading_first(redis: Redis) -> None:
    redis.incr("k", 1 - int(redis.get("k") or 0))


def by_script(redis: Redis) -> None:
    redis.register_script("return redis.call('INCR', KEYS[1])")(keys=["k"])


@pytest.mark.parametrize(
    ("answer", "become", "count"),
    [
        ("READONLY", replica, by_command),
        ("READONLY", replica, by_transaction),
        ("READONLY", replica, by_script),
        ("NOREPLICAS", without_enough_replicas, by_command),
        ("MASTERDOWN", replica_without_its_primary, by_reading_first),
    ],
)
def test_connections_to_a_server_that_is_not_the_primary_are_closed(
    answer: str,
    become: Callable[[Valkey, Valkey], None],
    count: Callable[[Redis], None],
    pair: tuple[Valkey, Valkey, Name],
) -> None:
    old, new, name = pair
    with open_redis(name.url) as redis, new.client() as there, old.client() as here:
        with redis.pipeline() as one, redis.pipeline() as two:  # two connections, idle from here on
            one.watch("k")
            two.watch("k")
        become(old, new)
        with pytest.raises(NotPrimaryError, match=answer):
            count(redis)
        assert normal_clients(here) == 1, "all others are closed"
        name.point_to(new)
        count(redis)
        assert there.get("k") == b"1", "the next one is done by the new primary, once"


@pytest.mark.parametrize("count", [by_command, by_transaction, by_script])
def test_a_failover_after_the_name_has_moved_causes_no_error(
    count: Callable[[Redis], None], pair: tuple[Valkey, Valkey, Name]
) -> None:
    old, new, name = pair
    with open_redis(name.url) as redis, new.client() as there:
        count(redis)
        name.point_to(new)
        old.follow(new)
        count(redis)
        assert there.get("k") == b"1"


def test_a_worker_waiting_for_jobs_moves_to_the_new_primary(
    pair: tuple[Valkey, Valkey, Name],
) -> None:
    old, new, name = pair
    with open_redis(name.url, socket_timeout=20) as redis, new.client() as there, ThreadPoolExecutor() as do:
        with old.client() as here:
            waiting = do.submit(redis.blmove, "from", "to", 15)
            eventually(lambda: here.info("clients")["blocked_clients"] == 1, 10)
        name.point_to(new)
        old.follow(new)
        there.lpush("from", "job")
        assert waiting.result(10) == b"job"


def normal_clients(redis: Redis) -> int:
    """How many clients a server has, replicas and primaries aside; `redis` is one of them."""
    return len([each for each in redis.client_list() if not set("MS") & set(each["flags"])])


@pytest.mark.long
def test_after_a_failover_events_are_applied_without_a_restart(
    pair: tuple[Valkey, Valkey, Name], commands: Commands
) -> None:
    old, new, name = pair
    url = f"sqlite:///{commands.folder}/mirror.db"
    commands.settings |= {"REDIS_URL": name.url, "DATABASE_URL": url, "WORKER_PROCESSES": 1, "WEB_PROCESSES": 1}
    assert commands.start("migrate").process.wait(60) == 0
    (web, port), worker, clock = commands.web(), commands.start("worker"), commands.start("clock", SWEEP_SECONDS=0.5)
    engine = open_engine(url)
    first, second, third = map(encoded, new_users(3))

    def applied() -> int:
        return statuses(engine).get("done", 0)

    eventually(lambda: worker.output().count("worker_started") == 2, 60)
    assert deliver(port, first) == 200
    eventually(lambda: applied() == 1, 10)

    old.follow(new)  # the name is still the old one's
    assert deliver(port, second) == 200
    eventually(lambda: "ring_failed" in clock.output(), 20)
    assert "sweep_rang" not in clock.output(), "it did not"
    assert "READONLY" in failures(commands)["redis"]["saw"]
    assert applied() == 1

    name.point_to(new)
    eventually(lambda: applied() == 2, 15)
    assert deliver(port, third) == 200
    eventually(lambda: applied() == 3, 3)
    work = {"redis", "doorbell", "workers, drain", "workers, repair", "clock"}
    eventually(lambda: not work & failures(commands).keys(), 40)  # an idle worker registers again within 15 s
    assert [command.process.poll() for command in (web, worker, clock)] == [None] * 3
    engine.dispose()


def failures(commands: Commands) -> dict[str, JSON]:
    """The problems that doctor finds now, by name."""
    doctor = commands.start("doctor", "--json")
    doctor.process.wait(60)
    _, _, checks = doctor.output().partition("[")  # after what it logs
    return {check["name"]: check for check in json.loads(f"[{checks}") if check["level"] == "failure"}
