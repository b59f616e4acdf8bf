"""The command line: input, output and exit codes."""

import errno
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import Engine, insert, update

from models.database import in_transaction
from models.revisions import current_revision, newest_revision
from models.tables import Drift, Run, Task
from models.types import db_now
from tests.support import JSON, SECRET, accept, apply_all, commands, made
from tests.support.actors import by
from tests.support.catalog import drop_schema
from tests.support.cli import on_terminal, report, run
from tests.support.mirror import ORG, USER
from worker.cli import main
from worker.repair.resync.resync import start
from worker.runs import create


@pytest.fixture(autouse=True)
def _surroundings(set_environment: Callable[..., None], db_url: str) -> None:
    set_environment(DATABASE_URL=db_url)


@pytest.fixture
def db_url(make_database: Any) -> str:
    """SQLite. `TestPostgresql` runs the same queries on PostgreSQL."""
    return str(make_database("sqlite"))


@pytest.fixture
def story(endpoint: FlaskClient, engine: Engine) -> JSON:
    """A workspace with one admin, and one failed event; returns the events by name."""
    admin = {"slug": "admin"}
    events = {
        "organization": made("organization.created"),
        "user": made("user.created"),
        "membership": made("organization_membership.updated", role=admin, roles=[admin]),
        "failed": made("user.updated", id=None),
    }
    accept(endpoint, *events.values())
    apply_all(engine)
    return events


# `demo` passes its arguments, --help included, to the demo itself.
@pytest.mark.parametrize("path", [path for path, _ in commands(main) if path not in ((), ("demo",))], ids=" ".join)
def test_help_of_every_command_has_a_description(path: tuple[str, ...]) -> None:
    text = run(*path, "--help").stdout
    explanation = text.split("\n\n")[1].strip()
    assert explanation[0].isupper() and len(explanation.split()) >= 4
    assert "\\b" not in text  # click's mark of a paragraph that must not be wrapped


def test_an_unknown_command_exits_2() -> None:
    assert "No such command 'nonsense'" in run("nonsense", exit_code=2).stderr


@pytest.mark.parametrize(
    ("mistyped", "meant"), [("evnts", "'events'"), ("events lst", "'list'"), ("resync --dryrun", "'--dry-run'")]
)
def test_suggestions_for_mistyped_commands_and_options(mistyped: str, meant: str) -> None:
    error = run(*mistyped.split(), exit_code=2).stderr
    assert meant in error.partition("Did you mean")[2]


def test_invalid_settings_exit_2_and_are_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "high")
    monkeypatch.setenv("ROLE_MAP", "owner=king")
    result = run("status", exit_code=2)
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert line.startswith("workos-sync: ") and "PORT" in line and "ROLE_MAP" in line


@pytest.mark.parametrize("secrets", ["", "a,,b"])
def test_web_refuses_an_empty_secret(monkeypatch: pytest.MonkeyPatch, secrets: str) -> None:
    monkeypatch.setenv("WORKOS_WEBHOOK_SECRETS", secrets)
    assert "WORKOS_WEBHOOK_SECRETS" in run("web", exit_code=2).stderr


REPORTS = [["status"], ["events", "list"], ["events", "show", "event_1"], ["members", "org_1"]]


@pytest.mark.parametrize("arguments", [*REPORTS, ["worker"], ["clock"], ["web"]], ids=" ".join)
def test_unmigrated_database_exits_2_with_the_remedy(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setenv("WORKOS_WEBHOOK_SECRETS", SECRET)
    drop_schema(engine)
    assert "workos-sync migrate" in run(*arguments, exit_code=2).stderr


@pytest.mark.parametrize("url", ["postgresql://nobody:hunter2@127.0.0.1:1/none", "sqlite:////dev/null/x.db"])
@pytest.mark.parametrize("arguments", [*REPORTS, ["migrate"]], ids=" ".join)
def test_unavailable_database_exits_2_with_one_line(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], url: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    [line] = run(*arguments, exit_code=2).stderr.splitlines()
    assert "DATABASE_URL" in line and "hunter2" not in line


@pytest.mark.parametrize("arguments", [*REPORTS, ["doctor"]], ids=" ".join)
def test_reports_create_no_database(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str]) -> None:
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path}/data/mirror.db")
    ended = run(*arguments, exit_code=1 if arguments == ["doctor"] else 2)
    assert "does not exist" in ended.output and "workos-sync migrate" in ended.output
    assert list(tmp_path.iterdir()) == []
    run("migrate")
    assert "does not exist" not in run("status", "--json", exit_code=1).output


@pytest.mark.long
def test_migrate_upgrades_an_empty_database_and_is_idempotent(engine: Engine) -> None:
    drop_schema(engine)
    assert current_revision(engine) is None
    for _ in range(2):
        assert newest_revision() in run("migrate").stdout
    assert current_revision(engine) == newest_revision()


def test_events_list_is_sorted_newest_first(story: JSON) -> None:
    rows = report("events", "list")
    assert {row["id"] for row in rows} == {event["id"] for event in story.values()}
    assert [row["received_at"] for row in rows] == sorted((row["received_at"] for row in rows), reverse=True)
    assert {row["status"] for row in rows} == {"done", "failed"}
    assert len(report("events", "list", "--limit", "2")) == 2


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        (["--status", "failed"], {"failed"}),
        (["--status", "done"], {"organization", "user", "membership"}),
        (["--type", "user.created"], {"user"}),
        (["--organization", ORG], {"organization", "membership"}),
        (["--organization", ORG, "--type", "organization.created"], {"organization"}),
        (["--organization", "org_x"], set()),
    ],
)
def test_events_list_filters(story: JSON, filters: list[str], found: set[str]) -> None:
    assert {row["id"] for row in report("events", "list", *filters)} == {story[name]["id"] for name in found}


def test_events_list_shows_the_error_of_a_failed_event(story: JSON) -> None:
    lines = run("events", "list").stdout
    assert "data.id: is missing" in lines and story["failed"]["id"] in lines


def test_events_show_has_payload_and_changes(story: JSON) -> None:
    shown = report("events", "show", story["user"]["id"])
    assert shown["body"] == story["user"]
    assert (shown["status"], shown["outcome"], shown["object_id"]) == ("done", "applied", USER)
    assert [(change["before"], change["after"]["email"]) for change in shown["changes"]] == [
        (None, story["user"]["data"]["email"])
    ]
    assert story["user"]["data"]["email"] in run("events", "show", story["user"]["id"]).stdout


def test_events_show_of_an_unknown_event_exits_1() -> None:
    assert "event_x" in run("events", "show", "event_x", exit_code=1).stderr


def test_members_lists_people_with_roles(story: JSON) -> None:
    shown = report("members", ORG)
    assert (shown["name"], shown["state"]) == ("Acme Rockets", "active")
    assert [(m["user_id"], m["role"], m["email"]) for m in shown["members"]] == [
        (USER, "admin", "ada.hopper@acme.example")
    ]
    table = on_terminal("members", ORG)
    assert "Acme Rockets" in table and "ada.hopper@acme.example" in table


def test_workspaces_are_counted_and_found_by_domain(story: JSON, endpoint: FlaskClient, engine: Engine) -> None:
    accept(
        endpoint,
        made("organization_domain.verified"),
        made("invitation.created", expires_at="2099-01-01T00:00:00.000Z"),
    )
    apply_all(engine)
    [acme] = report("workspaces", "--domain", "ACME.example.")
    assert (acme["organization_id"], acme["members"], acme["invitations"]) == (ORG, 1, 1)
    assert report("workspaces", "--domain", "other.example") == report("workspaces", "--domain", "nonsense") == []


def test_members_of_an_unknown_workspace_exits_1() -> None:
    assert "org_x" in run("members", "org_x", exit_code=1).stderr


@pytest.mark.parametrize("name", ["[bold]Acme[/bold]", "Acme [/] Rockets", "[/nonsense]", "Acme :smile: [red]"])
def test_markup_in_names_is_printed_literally(endpoint: FlaskClient, engine: Engine, name: str) -> None:
    event = made("organization.created", name=name)
    accept(endpoint, event, made("user.created", email=f"{name}@acme.example"), made("organization_membership.updated"))
    apply_all(engine)
    table = on_terminal("members", ORG)
    assert f"{name} (active)" in table and f"{name}@acme.example" in table
    assert f'"name": "{name}"' in on_terminal("events", "show", event["id"])


def test_control_characters_in_names_are_not_printed(endpoint: FlaskClient, engine: Engine) -> None:
    accept(endpoint, made("organization.created", name="Acme\x1b[2J\x1b]0;owned\x07"))
    apply_all(engine)
    assert "\x1b" not in on_terminal("members", ORG)


def test_status_with_problems_lists_them_and_exits_1(story: JSON) -> None:
    shown = report("status", exit_code=1)
    assert (shown["pending"], shown["failed"], shown["workers"]) == (0, 1, 0)
    assert shown["mirror"]["state"] == "backfilling"
    wrong = {problem.split(":")[0] for problem in shown["problems"]}
    waiting = "1 job waits in the lane drain, which has no worker"
    assert wrong == {
        f"no worker is running (therefore {waiting}; the mirror was never filled)",
        "the clock has never run",
        "1 event failed",
    }
    because_of = {each["name"]: each["because_of"] for each in shown["conditions"] if each["because_of"]}
    assert because_of == dict.fromkeys(("queued_without_worker", "backfilling"), "no_worker")
    assert "no worker is running" in run("status", exit_code=1).stdout


def test_status_reports_an_unavailable_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    shown = report("status", exit_code=1)
    assert shown["workers"] is None and "Redis does not answer" in shown["problems"][0]


def test_status_reports_an_unfilled_mirror_unless_a_resync_is_running(
    monkeypatch: pytest.MonkeyPatch, engine: Engine
) -> None:
    assert report("status", exit_code=1)["repair"].startswith("off")
    monkeypatch.setenv("WORKOS_API_KEY", "sk_test")
    monkeypatch.setenv("WORKOS_CLIENT_ID", "client_test")
    assert any("never filled" in problem for problem in report("status", exit_code=1)["problems"])
    run_id = start(engine, by("ann"))
    shown = report("status", exit_code=1)
    assert shown["runs"] == [f"resync {run_id}, queued, list, requested by ann"]
    assert not any("never filled" in problem for problem in shown["problems"])
    assert any(f"runs show {run_id}" in each["remedy"] for each in shown["conditions"])
    ended = {"status": "failed", "finished_at": db_now(), "error": "/organizations: 500"}
    in_transaction(engine, lambda tx: tx.execute(update(Run).values(ended)))
    shown = report("status", exit_code=1)
    assert f"resync {run_id} failed: /organizations: 500: run workos-sync resync" in shown["warnings"]
    assert any("never filled" in problem for problem in shown["problems"])


def test_status_names_unmapped_roles(endpoint: FlaskClient, engine: Engine) -> None:
    roles = {"admin": 1, "owner": 2}
    for slug, number in roles.items():
        for place in range(number):
            role, id = {"slug": slug}, f"om_{slug}_{place}"
            accept(
                endpoint,
                made("organization_membership.created", event_id=f"event_{id}", id=id, role=role, roles=[role]),
            )
    apply_all(engine)
    assert report("status", exit_code=1)["unmapped_roles"] == ["owner: 2 memberships"]


def test_failed_events_are_grouped_replayed_and_dismissed(story: JSON, engine: Engine) -> None:
    failed = story["failed"]["id"]
    [kind] = report("events", "failures", exit_code=1)
    assert (kind["events"], kind["example"], kind["type"]) == (1, failed, "user.updated")
    assert kind["fingerprint"] in run("events", "failures", exit_code=1).stdout
    planned = report("replay", "--fingerprint", kind["fingerprint"], "--dry-run")
    assert planned == {"events": 1, "without_payload": 0, "outcomes": {"failed": 1}, "changes": 0}
    replayed = report("replay", "--failed", "--reason", "a try")
    assert (replayed["status"], replayed["done"], replayed["reason"]) == ("done", 1, "a try")
    assert replayed["results"] == {"pending": 1}
    apply_all(engine)
    assert report("runs", "show", replayed["id"])["task"] == "replay"
    assert "1 failed" in run("runs", "show", replayed["id"]).stdout
    assert "1 dismissed" in run("events", "dismiss", failed, "--reason", "nobody").stdout
    assert "did not fail" in run("events", "dismiss", failed, "--reason", "nobody", exit_code=1).stderr
    assert "there are no failed events" in run("events", "failures").stderr
    assert report("events", "show", failed)["dismissed_why"] == "nobody"
    assert "no event matches" in run("replay", "--failed", exit_code=1).stderr
    assert "is not a running replay" in run("runs", "cancel", replayed["id"], exit_code=1).stderr


def test_replay_without_a_selection_is_refused(story: JSON) -> None:
    assert "select events" in run("replay", exit_code=2).stderr


def test_runs_list_and_show(engine: Engine) -> None:
    run_id = start(engine, by("ann"))
    drifts = [
        {
            "run_id": run_id,
            "kind": "user",
            "object_id": f"user_{number:03}",
            "finding": "missing",
            "action": "repaired",
        }
        for number in range(250)
    ]
    in_transaction(engine, lambda tx: tx.execute(insert(Drift), drifts))
    assert [row["id"] for row in report("runs", "list")] == [run_id]
    for filters, found in (("--task resync --status queued --since 1h", 1), ("--task replay", 0), ("--status done", 0)):
        assert len(report("runs", "list", *filters.split())) == found, filters
    assert run_id in run("runs", "list").stdout
    shown = run("runs", "show", run_id)
    assert "user_199" in shown.stdout and "user_200" not in shown.stdout and "250 missing" in shown.stdout
    assert "and more" in shown.stderr
    shown = report("runs", "show", run_id)
    assert [row["object_id"] for row in shown["drift"]] == [row["object_id"] for row in drifts]
    assert shown["findings"] == {"missing": 250}
    assert "there is no run nonsense" in run("runs", "show", "nonsense", exit_code=1).stderr


def test_runs_show_of_a_catch_up_does_not_mention_drift(engine: Engine) -> None:
    run_id = in_transaction(engine, create, Task.CATCH_UP, "ann")
    shown = run("runs", "show", run_id).stdout
    assert "catch-up" in shown and "running" in shown and "drift" not in shown
    [row] = report("runs", "list")
    assert row["phase"] == ""
    assert report("status", exit_code=1)["runs"] == [f"catch-up {run_id}, queued, requested by ann"]


def fail_with(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def list_events(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("worker.reports.listings.list_events", list_events)


def test_unexpected_error_exits_1_with_one_line(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, ValueError("no such column\nsecond line"))
    result = run("events", "list", exit_code=1)
    assert isinstance(result.exception, SystemExit) and result.stdout == ""
    [line] = result.stderr.splitlines()
    assert line.startswith("workos-sync: events failed unexpectedly: ValueError at tests/use_cases/test_cli.py:")
    assert "no such column" not in line  # the message may quote values
    assert line.endswith("run workos-sync --traceback events ...")
    assert isinstance(run("--traceback", "events", "list", exit_code=1).exception, ValueError)


def test_closed_pipe_ends_a_command_quietly(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, BrokenPipeError(errno.EPIPE, "Broken pipe"))
    assert run("events", "list", exit_code=1).stderr == ""


def test_demo_outside_a_checkout_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tests", None)
    assert "checkout" in run("demo", exit_code=2).stderr


class TestPostgresql:
    """The same reports on PostgreSQL."""

    @pytest.fixture
    def db_url(self, make_database: Any) -> str:
        return str(make_database("postgresql"))

    def test_reports(self, story: JSON) -> None:
        assert len(report("events", "list", "--organization", ORG)) == 2
        assert report("events", "show", story["user"]["id"])["body"] == story["user"]
        assert [member["user_id"] for member in report("members", ORG)["members"]] == [USER]
        assert report("status", exit_code=1)["failed"] == 1
