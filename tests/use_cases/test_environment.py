"""A database belongs to one WorkOS environment: the key or client id of another is refused."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest
from redis import Redis
from sqlalchemy import Engine

from models.tables import Change, Event, MirrorState, Run, Tick
from tests.support import JSON, apply_all, rows
from tests.support.cli import run
from tests.support.repair import mirror, settings, status
from tests.support.resync import CLIENT_ID, client_of, deliver, settings_of, small_life
from worker.errors import ConfigurationError
from worker.queue.doorbell import Doorbell
from worker.repair.catch_up import update_complete_to
from worker.repair.environment import bind
from worker.repair.work import Repair
from worker.sandbox import Sandbox
from worker.workos_api.client import WorkOSClient

OTHER_KEY = "sk_test_other"


@pytest.fixture
def two_environments(redis: Redis) -> Any:
    """A sandbox of two environments, both with companies; the second one opens with another key."""
    made = Sandbox(seed=7)
    small_life(made.world)
    small_life(made.add_environment(OTHER_KEY).world)
    with made:
        yield made


@pytest.fixture
def bound(two_environments: Sandbox, redis: Redis, one_engine: Engine, bell: Doorbell) -> Engine:
    """A database that is bound to the first environment."""
    workos = client_of(two_environments, redis)
    for _ in range(2):
        Repair(one_engine, workos, settings(), bell).work_on_all()
        apply_all(one_engine)  # what catch-up brought, if WorkOS no longer holds it back
    update_complete_to(one_engine)
    workos.close()
    assert status(one_engine)["state"] == "current"
    return one_engine


@pytest.fixture
def surroundings(set_environment: Callable[..., None], bound: Engine, two_environments: Sandbox) -> None:
    url = bound.url.render_as_string(hide_password=False)
    set_environment(DATABASE_URL=url, **settings_of(two_environments))


def everything(engine: Engine) -> dict[str, list[JSON]]:
    """The rows that a command could have written."""
    return {table.__tablename__: rows(engine, table) for table in (MirrorState, Run, Tick, Event, Change)}


COMMANDS = [
    ["worker"],
    ["clock"],
    ["resync"],
    ["resync", "--dry-run"],
    ["catch-up"],
    ["catch-up", "--since", "2026-01-01"],
]
WRONG = {
    "another client id": ({"WORKOS_CLIENT_ID": "client_other"}, f"WORKOS_CLIENT_ID: this database mirrors {CLIENT_ID}"),
    "another environment's key": (
        {"WORKOS_API_KEY": OTHER_KEY},
        "the key sees none of the organizations in this database; a sandbox that was started again has new ones",
    ),
    "a refused key": ({"WORKOS_API_KEY": "sk_test_nobody"}, "WORKOS_API_KEY: WorkOS refuses the key"),
    "no key": ({"WORKOS_API_KEY": ""}, "WORKOS_API_KEY is not set"),
    "no client id": ({"WORKOS_CLIENT_ID": ""}, "WORKOS_CLIENT_ID is not set"),
}


@pytest.mark.long
@pytest.mark.usefixtures("surroundings")
@pytest.mark.parametrize(("environment", "said"), WRONG.values(), ids=WRONG)
def test_another_environment_is_refused_before_writing(
    bound: Engine, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], said: str
) -> None:
    monkeypatch.setenv("ROLE_MAP", "owner=admin")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    before = everything(bound)
    for arguments in COMMANDS:
        result = run(*arguments, exit_code=2)
        line = result.stderr.splitlines()[-1]
        assert said in line and "sk_test" not in result.stderr, arguments
        assert everything(bound) == before, arguments


@pytest.mark.usefixtures("surroundings")
@pytest.mark.parametrize("arguments", [["status"], ["events", "list"], ["members", "org_1"]], ids=" ".join)
def test_incomplete_credentials_are_refused(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    monkeypatch.delenv("WORKOS_CLIENT_ID")
    assert "WORKOS_CLIENT_ID is not set" in run(*arguments, exit_code=2).stderr


@pytest.mark.parametrize("gone", ["with events", "all but one", "without events"])
def test_deleted_organizations_are_not_another_environment(
    bound: Engine, two_environments: Sandbox, redis: Redis, gone: str
) -> None:
    world = two_environments.world
    chosen = list(world.organizations)[: -1 if gone == "all but one" else None]
    first = len(world.events)
    for id in chosen:
        world.delete_organization(id)
    if gone == "with events":
        deliver(bound, world.events[first:])
    workos = client_of(two_environments, redis)
    bind(bound, workos, settings())
    workos.close()


def test_another_environment_is_detected_by_its_users(bound: Engine, two_environments: Sandbox, redis: Redis) -> None:
    for id in list(two_environments.world.organizations):
        two_environments.world.delete_organization(id)
    foreign = client_of(two_environments, redis, key=OTHER_KEY)
    with closing(foreign), pytest.raises(ConfigurationError, match="sees none of the organizations"):
        bind(bound, foreign, settings())


def test_concurrent_binds_choose_one_environment(both_engines: Engine, workos: WorkOSClient) -> None:
    def attempt(client_id: str) -> bool:
        try:
            bind(both_engines, workos, settings(workos_client_id=client_id))
        except ConfigurationError:
            return False
        return True

    with ThreadPoolExecutor() as pool:
        done = list(pool.map(attempt, ["client_one", "client_two"] * 2))
    assert sorted(done) == [False, False, True, True]
    assert mirror(both_engines)["client_id"] in ("client_one", "client_two")
