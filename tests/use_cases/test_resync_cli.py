"""`workos-sync resync`: input, output and exit codes."""

import contextlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.progress import Progress
from sqlalchemy import Engine, update

from models.database import in_transaction, open_engine
from models.tables import Event, MirrorState, Run
from models.types import db_now_plus
from tests.support import differences, rows
from tests.support.actors import by
from tests.support.cli import Terminal
from tests.support.resync import (
    CLIENT_ID,
    MEMBERSHIPS,
    away_after,
    catch_up_with,
    changes,
    comes_back,
    deliver,
    live,
    quietly,
    settings_of,
    small_life,
)
from worker.cli import main
from worker.kinds import KINDS
from worker.repair.resync.resync import start
from worker.runs import wait_for_run
from worker.sandbox import Sandbox

pytestmark = pytest.mark.long


@pytest.fixture
def db_url(make_database: Callable[[str], str]) -> str:
    return make_database("sqlite")


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    made = Sandbox(seed=11)
    small_life(made.add_environment("sk_test_other").world, 4, 1)
    with made:
        small_life(made.world, 3, 2)
        yield made


@pytest.fixture(autouse=True)
def _surroundings(set_environment: Callable[..., None], db_url: str, sandbox: Sandbox, restored_logging: None) -> None:
    set_environment(DATABASE_URL=db_url, WORKOS_RATE_SHARE="1", **settings_of(sandbox))


@pytest.fixture
def mirror(db_url: str) -> Iterator[Engine]:
    engine = open_engine(db_url)
    yield engine
    engine.dispose()


@pytest.fixture
def equal(mirror: Engine, sandbox: Sandbox) -> Engine:
    """A mirror that is bound to the sandbox and equals it."""
    catch_up_with(mirror, sandbox.world)
    run()
    assert differences(mirror, sandbox.world.truth()) == []
    return mirror


def run(*arguments: str, exit_code: int = 0) -> Result:
    result = CliRunner().invoke(main, ["resync", *arguments])
    assert result.exit_code == exit_code, (result.output, result.exception)
    return result


def refused(*arguments: str, exit_code: int = 2) -> str:
    """The one line that a refused command prints."""
    result = run(*arguments, exit_code=exit_code)
    lines = [line for line in result.stderr.splitlines() if line.startswith("workos-sync: ")]
    assert len(lines) == 1 and result.stdout == "", result.output
    return lines[0]


def everything(engine: Engine) -> Any:
    return live(engine), changes(engine), {name: rows(engine, kind.table) for name, kind in KINDS.items()}


def test_first_resync_fills_the_mirror_and_prints_a_summary(mirror: Engine, sandbox: Sandbox) -> None:
    result = run()
    assert differences(mirror, sandbox.world.truth()) == []
    assert "20 missing; 9 API calls" in result.stdout, (
        result.stdout
    )  # 3 workspaces, 3 domains, 6 users, 6 members, 2 roles
    assert run().stdout.endswith("no drift; 9 API calls\n")


def test_dry_run_changes_nothing_and_exits_1_if_there_is_drift(equal: Engine, sandbox: Sandbox) -> None:
    world = sandbox.world
    assert "no drift" in run("--dry-run").stdout
    assert json.loads(run("--dry-run", "--json").stdout)["drift"] == []
    organization, user = next(iter(world.organizations)), next(iter(world.users))
    quietly(world, lambda: world.update_organization(organization, name="[bold]Renamed"))
    quietly(world, lambda: world.delete_user(user))
    before = everything(equal)
    table = run("--dry-run", exit_code=1).stdout
    assert organization in table and "stale" in table and "[bold]Renamed" in table and "reported" in table
    assert "1 stale" in table and "1 extra" in table
    shown = json.loads(run("--dry-run", "--json", exit_code=1).stdout)
    assert everything(equal) == before
    assert {(row["kind"], row["object_id"], row["finding"]) for row in shown["drift"]} == {
        ("organization", organization, "stale"),
        ("user", user, "extra"),
    }
    [renamed] = [row for row in shown["drift"] if row["kind"] == "organization"]
    assert renamed["fields"] == {"name": ["Company 0", "[bold]Renamed"]}
    assert shown["dry_run"] is True and shown["findings"] == {"stale": 1, "extra": 1}
    run()
    assert "no drift" in run("--dry-run").stdout


def test_dry_run_on_a_new_database_does_not_bind_it(mirror: Engine, sandbox: Sandbox) -> None:
    before = rows(mirror, MirrorState)
    assert "20 missing" in run("--dry-run", exit_code=1).stdout
    assert rows(mirror, MirrorState) == before and before[0]["client_id"] is None
    assert [(row["dry_run"], row["status"]) for row in rows(mirror, Run)] == [(True, "done")]


def test_resync_of_one_workspace_takes_less_than_two_seconds(equal: Engine, sandbox: Sandbox) -> None:
    world = sandbox.world
    organization = next(iter(world.organizations))
    quietly(world, lambda: world.update_organization(organization, name="Renamed"))
    began = time.monotonic()
    assert "1 stale" in run("--organization", organization).stdout
    assert time.monotonic() - began < 2
    assert differences(equal, world.truth()) == []


@pytest.mark.parametrize("unknown", ["org_unknown", "../users", "user_1?x=y"])
def test_resync_of_an_unknown_organization_is_refused(equal: Engine, unknown: str) -> None:
    before = everything(equal)
    assert refused("--organization", unknown, exit_code=1) == f"workos-sync: WorkOS has no organization {unknown}"
    assert everything(equal) == before


def test_resync_of_a_workspace_deleted_at_workos_repairs_it(equal: Engine, sandbox: Sandbox) -> None:
    world = sandbox.world
    organization = next(iter(world.organizations))
    quietly(world, lambda: world.delete_organization(organization))
    assert "1 extra" in run("--organization", organization).stdout
    assert differences(equal, world.truth()) == []
    assert "has no organization" in refused("--organization", organization, exit_code=1)


@pytest.mark.parametrize("missing", [["WORKOS_API_KEY"], ["WORKOS_CLIENT_ID"], ["WORKOS_API_KEY", "WORKOS_CLIENT_ID"]])
def test_missing_settings_are_all_named(monkeypatch: pytest.MonkeyPatch, missing: list[str]) -> None:
    for name in missing:
        monkeypatch.delenv(name)
    line = refused()
    assert all(f"{name} is not set" in line for name in missing)


def test_invalid_api_key_prints_one_line(equal: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    before = everything(equal), rows(equal, Run), rows(equal, MirrorState)
    monkeypatch.setenv("WORKOS_API_KEY", "sk_wrong_secret")
    line = refused()
    assert line == "workos-sync: WORKOS_API_KEY: WorkOS refuses the key (401)"
    assert "sk_wrong_secret" not in line
    assert (everything(equal), rows(equal, Run), rows(equal, MirrorState)) == before


def test_key_of_another_environment_is_refused(equal: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    before = everything(equal), rows(equal, Run), rows(equal, MirrorState)
    monkeypatch.setenv("WORKOS_API_KEY", "sk_test_other")
    for arguments in ([], ["--dry-run"], ["--organization", "org_1"]):
        assert "the key sees none of the organizations in this database" in refused(*arguments)
    assert (everything(equal), rows(equal, Run), rows(equal, MirrorState)) == before


def test_another_client_id_is_refused(equal: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    before = everything(equal), rows(equal, Run), rows(equal, MirrorState)
    monkeypatch.setenv("WORKOS_CLIENT_ID", "client_other")
    assert f"this database mirrors {CLIENT_ID}" in refused()
    assert (everything(equal), rows(equal, Run), rows(equal, MirrorState)) == before


@pytest.mark.parametrize("left", [2, 1])
def test_key_of_another_environment_is_refused_on_small_mirror(
    equal: Engine, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    for organization in list(sandbox.world.organizations)[left:]:
        sandbox.world.delete_organization(organization)
    catch_up_with_new(equal, sandbox)
    run()
    before = everything(equal)
    monkeypatch.setenv("WORKOS_API_KEY", "sk_test_other")
    assert "the key sees none of the organizations in this database" in refused()
    assert everything(equal) == before


def catch_up_with_new(engine: Engine, sandbox: Sandbox) -> None:
    known = {row["id"] for row in rows(engine, Event)}
    deliver(engine, (event for event in sandbox.world.events if event["id"] not in known))


def test_emptied_environment_is_not_mistaken_for_another(equal: Engine, sandbox: Sandbox) -> None:
    for organization in list(sandbox.world.organizations):
        sandbox.world.delete_organization(organization)
    catch_up_with_new(equal, sandbox)
    run()
    assert live(equal)["organization"] == set()
    sandbox.world.create_organization("A new start")
    run()
    assert len(live(equal)["organization"]) == 1


def test_unavailable_workos_prints_one_line(equal: Engine, sandbox: Sandbox) -> None:
    before = everything(equal)
    sandbox.faults.fail(status=503, times=None)
    assert refused(exit_code=1).startswith("workos-sync: WorkOS did not answer as expected: ")
    assert everything(equal) == before


def test_interrupted_resync_is_resumed_by_the_same_command(equal: Engine, sandbox: Sandbox) -> None:
    away_after(sandbox, 3, 400)
    result = run(exit_code=1)
    assert "was interrupted" in result.stderr and "400" in result.stderr
    assert "Traceback" not in result.output
    comes_back(sandbox)
    again = run()
    assert len([row for row in rows(equal, Run) if row["task"] == "resync"]) == 2
    assert "no drift" in again.stdout


@pytest.mark.parametrize("interrupted", [False, True])
def test_catch_up_shows_its_progress_and_what_continues_after_ctrl_c(
    equal: Engine, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, interrupted: bool
) -> None:
    def press_ctrl_c(*_: object, **_values: object) -> None:
        raise KeyboardInterrupt

    if interrupted:
        monkeypatch.setattr(Progress, "update", press_ctrl_c)  # which shows that a page was read
    sandbox.knobs.hold_back = 0.0
    screen = Terminal()
    streams = contextlib.redirect_stderr(screen), contextlib.redirect_stdout(screen)
    with streams[0], streams[1], pytest.raises(SystemExit) as ended:
        main.main(["catch-up", "--since", "1d"], prog_name="workos-sync")
    shown = screen.getvalue()
    assert ended.value.code == int(interrupted), shown
    continues = "interrupted. The events read so far are in the inbox; for the rest, run it again"
    assert (continues in shown, "all events from" in shown) == (interrupted, not interrupted)
    assert interrupted or re.search(r"[1-9]\d* events read +\d+/s", shown)
    assert len(rows(equal, Event)) >= len(sandbox.world.events)


def test_second_resync_while_one_is_running_is_refused(equal: Engine) -> None:
    run_id = start(equal, by("another"))
    in_transaction(
        equal, lambda tx: tx.execute(update(Run).where(Run.id == run_id).values(leased_until=db_now_plus(30)))
    )
    assert refused(exit_code=1) == f"workos-sync: a resync is already running: run {run_id}"
    assert refused("--dry-run", exit_code=1) == f"workos-sync: a resync is already running: run {run_id}"


def test_wait_for_run_waits_until_another_worker_finishes_it(equal: Engine, sandbox: Sandbox) -> None:
    run_id = start(equal, by("test"))
    in_transaction(
        equal, lambda tx: tx.execute(update(Run).where(Run.id == run_id).values(leased_until=db_now_plus(30)))
    )
    ended = threading.Timer(
        0.3,
        lambda: in_transaction(equal, lambda tx: tx.execute(update(Run).where(Run.id == run_id).values(status="done"))),
    )
    ended.start()
    stop = threading.Event()
    assert wait_for_run(equal, run_id, stop.wait)
    ended.join()
    other = start(equal, by("test"))
    assert not wait_for_run(equal, other, stop.wait)  # no worker holds it
    in_transaction(
        equal, lambda tx: tx.execute(update(Run).where(Run.id == other).values(leased_until=db_now_plus(30)))
    )
    stop.set()
    assert not wait_for_run(equal, other, stop.wait)


def test_withheld_deletions_are_reported_and_carried_out_on_approval(equal: Engine, sandbox: Sandbox) -> None:
    world = sandbox.world
    with world.silently():
        for user in list(world.users):
            world.delete_user(user)
        world.create_user("left@people.example")
    result = run(exit_code=1)
    [run_id] = {row["id"] for row in rows(equal, Run) if row["id"] in result.stdout}
    assert "6 deletions withheld" in result.stderr and f"workos-sync resync --approve {run_id}" in result.stderr
    assert len(live(equal)["user"]) == 7
    status = CliRunner().invoke(main, ["status", "--json"])
    assert any(f"--approve {run_id}" in problem for problem in json.loads(status.stdout)["problems"])
    assert "6 extra" in run("--approve", run_id, "--reason", "they left").stdout
    assert differences(equal, world.truth()) == []
    status = CliRunner().invoke(main, ["status", "--json"])
    assert not any("--approve" in problem for problem in json.loads(status.stdout)["problems"])


def test_approving_a_run_without_withheld_deletions_is_refused(equal: Engine) -> None:
    assert refused("--approve", "nonsense", "--reason", "x", exit_code=1) == "workos-sync: there is no run nonsense"
    run("--approve", "nonsense", "--dry-run", exit_code=2)
    run("--approve", "nonsense", "--organization", "org_1", exit_code=2)


def test_invalid_items_are_in_the_report(equal: Engine, sandbox: Sandbox) -> None:
    sandbox.faults.invalid_item("/user_management/users$", missing="updated_at")
    shown = json.loads(run("--json").stdout)
    assert [(row["finding"], row["fields"]) for row in shown["drift"]] == [("invalid", {"user.updated_at": None})]


def test_a_workspace_whose_listing_failed_is_not_compared(equal: Engine, sandbox: Sandbox) -> None:
    world = sandbox.world
    organization = next(iter(world.organizations))
    quietly(world, lambda: world.delete_membership(world.children(organization, "organization_membership")[0]))
    sandbox.faults.fail(MEMBERSHIPS, query=f"organization_id={organization}", times=None)
    before = live(equal)
    one = run("--organization", organization, exit_code=1).stdout
    assert "incomplete: 1 of 1 organizations not compared; found: 1 invalid; " in one
    assert organization in one and "organization_memberships" in one and "500" in one
    assert "incomplete: 1 of 3 organizations not compared" in run(exit_code=1).stdout
    assert live(equal) == before
    shown = json.loads(run("--json", exit_code=1).stdout)
    assert (shown["status"], shown["compared"], shown["error"]) == ("done", [2, 3], None)
    again = CliRunner().invoke(main, ["runs", "show", shown["id"]])
    assert again.exit_code == 0 and "incomplete: 1 of 3 organizations not compared" in again.stdout
    sandbox.faults.clear()
    assert "1 extra" in run("--organization", organization).stdout


def test_a_failed_listing_is_reported_beside_a_difference(equal: Engine, sandbox: Sandbox) -> None:
    world = sandbox.world
    organization = next(iter(world.organizations))
    quietly(world, lambda: world.update_organization(organization, name="Renamed"))
    sandbox.faults.fail(MEMBERSHIPS, query=f"organization_id={organization}", times=None)
    shown = json.loads(run("--organization", organization, "--json", exit_code=1).stdout)
    [row] = [row for row in shown["drift"] if row["object_id"] == organization]
    assert row["finding"] == "stale" and row["fields"].keys() > {"name"}


def test_a_listing_that_disappears_with_its_organization_is_not_compared(equal: Engine, sandbox: Sandbox) -> None:
    organization = next(iter(sandbox.world.organizations))
    sandbox.faults.fail(MEMBERSHIPS, query=f"organization_id={organization}", status=404, times=None)
    assert "incomplete: 1 of 1" in run("--organization", organization, exit_code=1).stdout
    quietly(sandbox.world, lambda: sandbox.world.delete_organization(organization))
    assert "incomplete" not in run("--organization", organization).stdout


def test_connections_that_a_key_may_not_list_leave_nothing_incomplete(equal: Engine, sandbox: Sandbox) -> None:
    sandbox.faults.fail("/connections", status=403, times=None)
    for arguments in ([], ["--organization", next(iter(sandbox.world.organizations))]):
        output = run(*arguments).stdout
        assert "1 invalid" in output and "incomplete" not in output


@pytest.mark.parametrize("query", ["limit=100", ""], ids=["one listing fails", "WorkOS is away"])
def test_a_failed_resync_is_incomplete_and_never_without_drift(equal: Engine, sandbox: Sandbox, query: str) -> None:
    sandbox.faults.fail("/organizations$", times=None, query=query)
    result = run(exit_code=1)
    assert "incomplete: 0 of ? organizations compared" in result.stdout and "no drift" not in result.stdout
    assert json.loads(run("--json", exit_code=1).stdout)["findings"] is None
