"""Two environments share a PostgreSQL, with a schema each, and a Valkey: nothing crosses, and mix-ups are refused."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import pytest
from sqlalchemy import Engine

from models.database import CHANGES_LOCK, advisory_lock, open_engine, write_transaction
from tests.support import SECRET, rows
from tests.support.deliveries import deliver
from tests.support.inbox import count, pending
from tests.support.processes import QUICK, Command, Commands, Valkey, eventually, listens
from tests.support.stack.machine import free_ports
from tests.support.stories import encoded, organization
from worker.kinds.organization import Organization

pytestmark = pytest.mark.long

NUMBER = 40


class Running(NamedTuple):
    """An environment whose `up` runs."""

    name: str
    engine: Engine
    port: int

    def receive(self, number: int) -> None:
        """Deliver the event of the organization with that number."""
        id = f"org_{self.name}_{number}"
        assert deliver(self.port, encoded(organization(id, f"event_{self.name}_{number}", 1))) == 200

    def has_applied(self, number: int) -> bool:
        return count(self.engine) == number and not pending(self.engine)

    def ids(self) -> set[str]:
        return {row["id"] for row in rows(self.engine, Organization)}


@pytest.fixture
def shared(commands: Commands, valkey: Valkey, make_database: Callable[[str], str]) -> str:
    """Let all commands share one Valkey and one PostgreSQL database, whose URL is returned."""
    url = make_database("postgresql")
    commands.executed = True  # RQ reads its prefix when it is imported
    commands.settings |= QUICK | {"DATABASE_URL": url, "REDIS_URL": valkey.url, "OPS_TOKENS": f"ann:{SECRET}"}
    return url


def of(name: str) -> dict[str, object]:
    return {"ENVIRONMENT_NAME": name, "DATABASE_SCHEMA": name}


def ended(command: Command, code: int) -> str:
    assert command.process.wait(60) == code, command.output()
    return command.output()


@pytest.fixture
def environments(commands: Commands, shared: str) -> Iterator[list[Running]]:
    """Production and staging."""
    running = []
    for name in ("production", "staging"):
        ended(commands.start("migrate", **of(name)), 0)
        [port] = free_ports(1)
        commands.start("up", PORT=port, **of(name))
        running.append(Running(name, open_engine(shared, schema=name), port))
    for environment in running:
        eventually(partial(listens, environment.port), 60)
    yield running
    for environment in running:
        environment.engine.dispose()


def test_environments_side_by_side(commands: Commands, environments: list[Running], valkey: Valkey) -> None:
    production, staging = environments
    for number in range(NUMBER):
        for environment in environments:
            environment.receive(number)
    for environment in environments:
        eventually(partial(environment.has_applied, NUMBER), 30)
        assert environment.ids() == {f"org_{environment.name}_{number}" for number in range(NUMBER)}
    with valkey.client() as redis:
        keys = {key.decode() for key in redis.scan_iter()}
    assert {key.split(":")[0] for key in keys} == {"production", "staging"}, keys
    assert {tuple(key.split(":")[:2]) for key in keys} >= {
        (name, owner) for name in ("production", "staging") for owner in ("rq", "workos-sync")
    }

    # A transaction that assigns ids in one environment does not delay a commit in the other.
    with write_transaction(production.engine) as tx:
        advisory_lock(tx, CHANGES_LOCK)
        for environment in environments:
            environment.receive(NUMBER)
        eventually(lambda: not pending(staging.engine), 5)
        assert pending(production.engine)

    refused: dict[str, dict[str, object]] = {
        "ENVIRONMENT_NAME is staging, and the database belongs to production": of("production")
        | {"ENVIRONMENT_NAME": "staging"},
        "ENVIRONMENT_NAME is not set, and the database belongs to production": {"DATABASE_SCHEMA": "production"},
    }
    tried = [(said, commands.start(name, **mixed)) for said, mixed in refused.items() for name in ("migrate", "worker")]
    # The database of a third environment with the name of the first.
    ended(commands.start("migrate", ENVIRONMENT_NAME="production", DATABASE_SCHEMA="third"), 0)
    third = commands.start("worker", ENVIRONMENT_NAME="production", DATABASE_SCHEMA="third")
    for said, command in [*tried, ("REDIS_URL: another database uses the same keys", third)]:
        assert said in ended(command, 2)
    assert count(production.engine) == NUMBER + 1
    eventually(lambda: not pending(production.engine), 10)
