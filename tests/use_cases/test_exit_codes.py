"""Exit codes: 0 success, 1 a problem was found or the command failed, 2 wrong usage or configuration."""

import json
import os
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import Engine, insert, inspect, update

from models.database import in_transaction
from models.tables import Action, Audit, Event, EventStatus, Hook, HookDelivery, MirrorState, Run, RunStatus, Task, Via
from models.types import db_now, db_now_plus
from tests.support import JSON, SECRET, commands, fake_workers, made, rows
from tests.support.actors import by
from tests.support.auto_join import apply_events
from tests.support.catalog import drop_schema
from tests.support.hooks import SECRET as HOOK_SECRET
from tests.support.hooks import Web
from tests.support.resync import settings_of
from tests.support.tail import fresh
from worker.cli import main
from worker.cli.shared import operator
from worker.mirror.role_map import digest_of
from worker.processes.alive import Beats, file_of
from worker.processes.clock import heartbeat
from worker.queue.doorbell import HOOKS
from worker.repair.resync.resync import start
from worker.runs import create
from worker.sandbox import Sandbox

pytestmark = pytest.mark.long  # most of the commands prepare an installation of their own

URL = "https://sync.acme.example/webhooks/workos"
OWNERS = {"owner": "admin"}


class Installation(NamedTuple):
    """A healthy mirror that equals WorkOS, and the ids in it."""

    engine: Engine
    sandbox: Sandbox
    organization: str
    user: str
    """A member of the organization."""
    gone: str
    """A deleted user."""
    event: str
    """An event that was applied."""
    run: str
    """A successful resync."""


Prepare = Callable[[Installation], object]
"""Prepares an installation for a command; the result is ignored."""


class Case(NamedTuple):
    """A command line and its exit code. `{user}` and other fields are replaced by ids of the installation."""

    exit_code: int
    line: str
    prepare: Prepare | None = None
    acts: bool | None = None
    """Whether the audit records it; None: if the command is one of `ACTIONS` and exits 0."""


def an_event_failed(it: Installation) -> None:
    apply_events(it.engine, [made("user.updated", event_id="event_failed", id=None)])


def someone_is_missing(it: Installation) -> None:
    apply_events(
        it.engine, [made("user.created", id="user_missing", email="missing@acme.example", email_verified=True)]
    )


def someone_is_blocked(it: Installation) -> None:
    someone_is_missing(it)
    assert run("auto-join", "block", it.organization, "user_missing", "--reason", "x").exit_code == 0


def the_admin_left(it: Installation) -> None:
    it.sandbox.world.update_membership(next(iter(it.sandbox.world.memberships)), role="member")
    apply_events(it.engine, it.sandbox.world.events)


def a_hook_is_well(it: Installation) -> None:
    in_transaction(it.engine, lambda tx: tx.execute(insert(Hook).values(name="sessions", cursor=10**6)))


def a_hook_failed(it: Installation) -> None:
    a_hook_is_well(it)
    failed = {"hook": "sessions", "change_id": 1, "kind": "user", "object_id": it.user, "status": "failed"}
    in_transaction(it.engine, lambda tx: tx.execute(insert(HookDelivery).values(failed | {"attempts": 12})))


def a_replay_is_in_progress(it: Installation) -> None:
    run_id = in_transaction(it.engine, create, Task.REPLAY, "ann", selection={"failed": True}, total=1)
    in_transaction(it.engine, lambda tx: tx.execute(update(Run).where(Run.id == run_id).values(id="run_replay")))


def a_resync_is_in_progress(it: Installation) -> None:
    run_id = start(it.engine, by("ann"))
    leased = update(Run).where(Run.id == run_id).values(leased_until=db_now_plus(600))
    in_transaction(it.engine, lambda tx: tx.execute(leased))


def the_database_is_new(it: Installation) -> None:
    drop_schema(it.engine)


def a_role_map_is_withheld(it: Installation) -> None:
    withheld = {"role_map": OWNERS, "promotions": 30, "members": 100}
    in_transaction(it.engine, lambda tx: tx.execute(update(MirrorState).values(withheld_role_map=withheld)))


def workos_is_away(it: Installation) -> None:
    it.sandbox.faults.fail(status=503, times=None)


def workos_refuses_the_endpoint(it: Installation) -> None:
    it.sandbox.faults.fail(status=422, path="/webhook_endpoints", times=None)


def an_endpoint_is_old(it: Installation) -> None:
    old = it.sandbox.deliveries.add_endpoint("https://old.acme.example/webhooks/workos")
    it.sandbox.deliveries.endpoints["we_old"] = it.sandbox.deliveries.endpoints.pop(old.id)
    old.id = "we_old"


def workos_has_more(it: Installation) -> None:
    with it.sandbox.world.silently():
        it.sandbox.world.create_user("untold@acme.example")


def a_worker_beats(_: Installation) -> None:
    Beats(file_of("worker"))


def the_target_is_away(_: Installation) -> None:
    os.environ["NOTIFY"] = "http://127.0.0.1:1"


def replayed_before(it: Installation) -> None:
    ended = {"status": RunStatus.DONE, "finished_at": db_now()}
    assert run("replay", "--id", it.event).exit_code == 0
    in_transaction(it.engine, lambda tx: tx.execute(update(Run).where(Run.task == Task.REPLAY).values(ended)))
    in_transaction(it.engine, lambda tx: tx.execute(update(Event).values(status=EventStatus.DONE)))


HOOK_CASES = [
    Case(0, "sessions --reason x", a_hook_failed),
    Case(0, "sessions --reason x --change 1", a_hook_failed),
    Case(0, "sessions --reason x", acts=False),
    Case(1, "sessions --reason x --change 1", a_hook_is_well),
    Case(1, "nonsense --reason x"),
]
CASES = {
    "alive": [Case(0, "worker", a_worker_beats), Case(1, "clock"), Case(2, "web")],
    "audit list": [Case(0, ""), Case(0, "--action resync --via cli"), Case(2, "--action nonsense")],
    "auto-join block": [
        Case(0, "{organization} {user} --reason x"),
        Case(1, "org_none {user} --reason x"),
        Case(1, "{organization} user_none --reason x"),
        Case(2, "{organization} {user}"),
    ],
    "auto-join domains": [Case(0, ""), Case(1, "--organization org_none"), Case(2, "--limit 0")],
    "auto-join joins": [Case(0, ""), Case(1, "--organization org_none"), Case(2, "--state nonsense")],
    "auto-join unblock": [
        Case(0, "{organization} user_missing --reason x", someone_is_blocked),
        Case(1, "{organization} {user} --reason x"),
        Case(1, "{organization} user_none --reason x"),
        Case(2, "{organization} {user}"),
    ],
    "auto-join missing": [
        Case(0, ""),
        Case(1, "", someone_is_missing),
        Case(1, "--organization org_none"),
        Case(2, "--limit 0"),
    ],
    "auto-join set": [
        Case(0, "{organization} --off --reason x"),
        Case(1, "org_none --off --reason x"),
        Case(2, "{organization} --reason x"),
        Case(2, "{organization} --role king --reason x"),
    ],
    "catch-up": [
        Case(0, ""),
        Case(1, "", workos_is_away),
        Case(2, "--since 2001-01-01"),
        Case(2, "--since 2999-01-01"),
        Case(2, "--since someday"),
    ],
    "clock": [Case(2, "--nonsense")],
    "config": [Case(0, ""), Case(2, "--nonsense")],
    "demo": [Case(2, "--nonsense")],
    "doctor": [Case(0, ""), Case(1, "", workos_is_away), Case(2, "--nonsense")],
    "endpoints delete": [
        Case(0, "we_old --yes --reason x", an_endpoint_is_old),
        Case(1, "we_none --yes --reason x"),
        Case(2, "we_old --reason x", an_endpoint_is_old),
        Case(2, "we_old --yes"),
    ],
    "endpoints list": [Case(0, ""), Case(1, "", workos_is_away), Case(2, "--nonsense")],
    "events dismiss": [
        Case(0, "event_failed --reason x", an_event_failed),
        Case(1, "{event} --reason x"),
        Case(1, "event_none --reason x"),
        Case(2, "{event}"),
    ],
    "events failures": [Case(0, ""), Case(1, "", an_event_failed), Case(2, "--nonsense")],
    "events list": [Case(0, ""), Case(2, "--status nonsense"), Case(2, "--limit 0")],
    "events show": [Case(0, "{event}"), Case(1, "event_none"), Case(2, "")],
    "explain": [Case(0, "{user}"), Case(1, "user_none"), Case(2, "")],
    "forget": [
        Case(0, "{gone} --yes --reason x"),
        Case(1, "user_none --yes --reason x"),
        Case(1, "{user} --yes --reason x"),
        Case(2, "{gone} --reason x"),
        Case(2, "{gone} --yes"),
    ],
    "hooks dismiss": [*HOOK_CASES, Case(2, "sessions"), Case(2, "sessions --change nonsense")],
    "hooks failed": [
        Case(0, ""),
        Case(0, "sessions"),
        Case(1, "sessions", a_hook_failed),
        Case(1, "nonsense"),
        Case(2, "--limit 0"),
    ],
    "hooks list": [Case(0, ""), Case(1, "", a_hook_failed), Case(2, "--nonsense")],
    "hooks replay": [*HOOK_CASES, Case(2, "")],
    "members": [
        Case(0, "{organization}"),
        Case(1, "org_none"),
        Case(2, ""),
        Case(2, "{organization} --as-workos"),
    ],
    "migrate": [Case(0, "", acts=False), Case(0, "--reason x", the_database_is_new), Case(2, "--nonsense")],
    "notify test": [Case(0, ""), Case(1, "", the_target_is_away), Case(2, "--nonsense")],
    "plan": [
        Case(0, "", acts=False),
        Case(0, "--set ROLE_MAP=owner=admin --max-promotions 0", acts=False),
        Case(0, f"--approve {digest_of(OWNERS)} --reason x", a_role_map_is_withheld),
        Case(1, "--set ROLE_MAP=member=admin --max-promotions 0", the_admin_left),
        Case(1, "--approve nonsense --reason x"),
        Case(2, "--set PORT=1"),
    ],
    "register": [
        Case(0, URL, acts=False),
        Case(0, f"{URL} --rotate --reason x"),
        Case(1, URL, workos_is_away),
        Case(1, URL, workos_refuses_the_endpoint),
        Case(2, "http://sync.acme.example/webhooks/workos"),
    ],
    "replay": [
        Case(0, "--id {event}"),
        Case(1, "--id event_none"),
        Case(1, "--failed"),
        Case(1, "--id {event}", a_replay_is_in_progress),
        Case(1, "--id {event}", replayed_before),
        Case(2, ""),
    ],
    "resync": [
        Case(0, ""),
        Case(0, "--organization {organization}"),
        Case(0, "--dry-run"),
        Case(1, "--dry-run", workos_has_more, acts=True),
        Case(1, "--organization org_none"),
        Case(1, "--approve nonsense --reason x"),
        Case(1, "--approve {run} --reason x"),
        Case(2, "--approve {run}"),
        Case(1, "", a_resync_is_in_progress),
        Case(1, "", workos_is_away),
        Case(2, "--approve {run} --dry-run"),
    ],
    "review": [
        Case(0, "--format html"),
        Case(0, "--organization {organization}"),
        Case(1, "--organization org_none"),
        Case(2, "--at 2001-01-01"),
        Case(2, "--at 2999-01-01"),
    ],
    "runs cancel": [
        Case(0, "run_replay", a_replay_is_in_progress),
        Case(1, "{run}"),
        Case(1, "nonsense"),
        Case(2, ""),
    ],
    "runs list": [Case(0, ""), Case(2, "--limit 0")],
    "runs show": [Case(0, "{run}"), Case(1, "nonsense"), Case(2, "")],
    "seats": [Case(0, ""), Case(0, "--csv"), Case(2, "--at 2001-01-01"), Case(2, "--csv --json")],
    "sandbox": [Case(2, "--port 70000"), Case(2, "--secret x")],
    "send": [
        Case(1, "user.updated --url http://127.0.0.1:1"),
        Case(2, "user.update"),
    ],
    "status": [Case(0, ""), Case(1, "", an_event_failed), Case(2, "--nonsense"), Case(2, "-x")],
    "up": [Case(2, "--port 70000")],
    "web": [Case(2, "--port 70000")],
    "worker": [Case(2, "--processes 0")],
    "workspaces": [
        Case(0, ""),
        Case(0, "--without-admin"),
        Case(1, "--without-admin", the_admin_left),
        Case(2, "--limit 0"),
    ],
}
ACTIONS = {
    "auto-join block": Action.BLOCK,
    "auto-join set": Action.SET_AUTO_JOIN,
    "auto-join unblock": Action.UNBLOCK,
    "catch-up": Action.CATCH_UP,
    "endpoints delete": Action.DELETE_ENDPOINT,
    "events dismiss": Action.DISMISS_EVENT,
    "forget": Action.FORGET,
    "hooks dismiss": Action.DISMISS_DELIVERIES,
    "hooks replay": Action.RETRY_DELIVERIES,
    "migrate": Action.MIGRATE,
    "plan": Action.APPROVE_ROLE_MAP,
    "register": Action.REGISTER,
    "replay": Action.REPLAY,
    "resync": Action.RESYNC,
    "review": Action.REVIEW,
    "runs cancel": Action.CANCEL_REPLAY,
}
"""The commands that act, and their actions in the audit. The others only read."""
ENDLESS = {"up", "web", "worker", "clock", "sandbox"}
"""They run until they are stopped, and then exit 0: see tests/integration/test_stop.py."""
LISTS = {"audit list", "events list", "runs list", "seats"}
"""They have no finding that counts as a problem."""
PATHS = [" ".join(path) for path, command in commands(main) if not hasattr(command, "commands") and path != ()]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


@pytest.fixture(autouse=True)
def _surroundings(
    set_environment: Callable[..., None],
    make_database: Callable[[str], str],
    sandbox: Sandbox,
    web_host: Web,
    restored_logging: None,
) -> None:
    set_environment(
        DATABASE_URL=make_database("sqlite"),
        WORKOS_WEBHOOK_SECRETS=SECRET,
        WORKOS_RATE_SHARE="1",
        HOOKS="sessions=https://host/hook",
        HOOK_SECRETS=f"sessions:{HOOK_SECRET}",
        NOTIFY=web_host.url,
        NOTIFY_SECRET=HOOK_SECRET,
        **settings_of(sandbox),
    )


@pytest.fixture
def installation(configured_engine: Engine, redis_url: str, sandbox: Sandbox) -> Iterator[Installation]:
    world = sandbox.world
    organization = world.create_organization("Acme", domains=[("acme.example", "verified")])["id"]
    user, gone = (world.create_user(f"{name}@people.example")["id"] for name in ("ann", "gone"))
    world.create_membership(organization, user, role="admin")
    world.delete_user(gone)
    assert run("register", URL).exit_code == 0
    apply_events(configured_engine, world.events)
    in_transaction(configured_engine, lambda tx: tx.execute(update(Event).values(webhook_at=db_now())))
    assert run("resync").exit_code == 0
    assert run("catch-up").exit_code == 0
    (resync,) = (row["id"] for row in rows(configured_engine, Run) if row["task"] == Task.RESYNC)
    heartbeat(configured_engine)
    fresh(configured_engine)
    with fake_workers.registered(redis_url, HOOKS), fake_workers.answering(redis_url):
        yield Installation(configured_engine, sandbox, organization, user, gone, world.events[0]["id"], resync)


def test_every_command_is_covered() -> None:
    assert sorted(CASES) == sorted(PATHS)
    codes = {path: {case.exit_code for case in cases} for path, cases in CASES.items()}
    assert {path for path in CASES if 0 not in codes[path]} == {*ENDLESS, "demo", "send"}  # see test_send_test
    assert {path for path in CASES if 1 not in codes[path]} == {*ENDLESS, *LISTS, "config", "demo", "migrate"}
    assert all(2 in found for found in codes.values())


PREPARED = [
    pytest.param(path, case, id=f"{path} {case.line} {case.prepare.__name__}")
    for path, cases in CASES.items()
    for case in cases
    if case.prepare is not None
]


def check(path: str, case: Case, installation: Installation) -> None:
    """Run a case; the command must end with its exit code and without a traceback."""
    before = {row["id"] for row in audited(installation.engine)}
    ended = run(*path.split(), *case.line.format(**installation._asdict()).split())
    assert ended.exit_code == case.exit_code, (path, case.line, ended.output, ended.exception)
    assert isinstance(ended.exception, SystemExit | None) and "Traceback" not in ended.stderr
    new = [row for row in audited(installation.engine) if row["id"] not in before]
    acts = case.exit_code == 0 if case.acts is None else case.acts
    reason = "x" if "--reason x" in case.line else None
    expected = [(operator(), Via.CLI, ACTIONS[path], reason)] if acts and path in ACTIONS else []
    assert [(row["who"], row["via"], row["action"], row["reason"]) for row in new] == expected


def audited(engine: Engine) -> list[JSON]:
    """The audit; empty if the database has no tables."""
    return rows(engine, Audit) if inspect(engine).has_table("audit") else []


def test_each_command_that_takes_a_reason_acts() -> None:
    takes = {
        " ".join(path)
        for path, command in commands(main)
        if any(parameter.name == "reason" for parameter in command.params)
    }
    assert takes == ACTIONS.keys()


@pytest.mark.parametrize(("path", "case"), PREPARED)
def test_prepared_installation(installation: Installation, path: str, case: Case) -> None:
    assert case.prepare is not None
    case.prepare(installation)
    check(path, case, installation)


READING = [path for path in CASES if path not in {*ENDLESS, *ACTIONS, "demo"}]


@pytest.mark.parametrize("paths", [READING, *([path] for path in ACTIONS)], ids=lambda paths: paths[0])
def test_healthy_installation(installation: Installation, paths: list[str]) -> None:
    """Refused commands come first: they change nothing, so the others find a healthy installation too."""
    for path in paths:
        for case in sorted(CASES[path], key=lambda case: -case.exit_code):
            if case.prepare is None and case.exit_code < 2:
                check(path, case, installation)


def whole(path: str, line: str | None = None) -> list[str]:
    """Return a command with `line`, or with valid arguments, in which ids are made up."""
    if line is None:
        line = next((case.line for case in CASES[path] if case.exit_code < (1 if path != "send" else 2)), "")
    return [*path.split(), *re.sub(r"{(\w+)}", r"\1_1", line).split()]


@pytest.mark.parametrize("path", PATHS)
def test_wrong_usage_exits_2(path: str) -> None:
    for line in [case.line for case in CASES[path] if case.exit_code == 2]:
        ended = run(*whole(path, line))
        assert ended.exit_code == 2, (line, ended.output, ended.exception)
        assert ended.stderr.splitlines()[-1].startswith(("workos-sync: ", "Error: ")), line


WITHOUT_DATABASE = ("alive", "config", "notify test", "sandbox")
"""Commands that do not need the database."""
WITHOUT_SETTINGS = ("alive", "sandbox")
INVALID = {"DATABASE_URL": "postgresql://nobody:hunter2@127.0.0.1:1/none", "PORT": "high"}
REFUSING = [
    (path, name)
    for path in PATHS
    for name in INVALID
    if path not in ("demo", "doctor", *WITHOUT_SETTINGS) and not (path in WITHOUT_DATABASE and name == "DATABASE_URL")
]
"""Not the demo, which brings its own settings, nor doctor, which reports them."""


@pytest.mark.parametrize(("path", "name"), REFUSING)
def test_invalid_configuration_exits_2(monkeypatch: pytest.MonkeyPatch, path: str, name: str) -> None:
    monkeypatch.setenv(name, INVALID[name])
    ended = run(*whole(path))
    assert ended.exit_code == 2, (ended.output, ended.exception)
    (line,) = ended.stderr.splitlines()
    assert line.startswith("workos-sync: ") and name in line and "hunter2" not in line


def test_config_does_not_connect_to_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", INVALID["DATABASE_URL"])
    ended = run("config")
    assert ended.exit_code == 0 and "hunter2" not in ended.output, ended.output


@pytest.mark.parametrize(("name", "row"), [("DATABASE_URL", "database"), ("PORT", "PORT")])
def test_doctor_reports_invalid_configuration(monkeypatch: pytest.MonkeyPatch, name: str, row: str) -> None:
    monkeypatch.setenv(name, INVALID[name])
    ended = run("doctor", "--json")
    assert ended.exit_code == 1 and "hunter2" not in ended.output, ended.output
    levels = {found["name"]: found["level"] for found in json.loads(ended.stdout)}
    assert levels[row] == "failure", levels


def test_unmigrated_database_exits_2(configured_engine: Engine) -> None:
    drop_schema(configured_engine)
    for path in PATHS:
        if path in (*WITHOUT_DATABASE, "demo", "doctor", "migrate"):
            continue
        ended = run(*whole(path))
        assert ended.exit_code == 2, (path, ended.output, ended.exception)
        assert ended.stderr == "workos-sync: the database is not migrated; run: workos-sync migrate\n", path


@pytest.mark.parametrize("line", ["resync", "catch-up", f"register {URL}"])
@pytest.mark.parametrize(
    ("name", "value"), [("REDIS_URL", "redis://127.0.0.1:1/0"), ("WORKOS_API_KEY", "sk_test_nobody")]
)
def test_unreachable_redis_or_rejected_key_exits_2(
    monkeypatch: pytest.MonkeyPatch, line: str, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    ended = run(*line.split())
    assert ended.exit_code == 2, (ended.output, ended.exception)
    last = ended.stderr.splitlines()[-1]
    assert last.startswith(f"workos-sync: {name}") and "sk_test" not in last
    assert name == "REDIS_URL" or len(ended.stderr.splitlines()) == 1


def test_operator_without_login_name_is_recorded_by_uid(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 54321)  # which no passwd entry names, as in many containers
    ended = run("auto-join", "set", installation.organization, "--off", "--reason", "x")
    assert ended.exit_code == 0, (ended.output, ended.exception)
    assert "uid 54321" in run("explain", installation.organization).stdout
