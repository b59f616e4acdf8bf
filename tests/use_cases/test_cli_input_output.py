"""The command line: `config`, times, settings that cannot be read, and streams that are not UTF-8."""

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from freezegun import freeze_time
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine

from tests.support import made
from tests.support.auto_join import apply_events
from tests.support.cli import report, run
from tests.support.processes import environment
from worker import json_format
from worker.cli import options

KEY = "sk_test_unheard_of_key"
NOW = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)


@pytest.fixture
def surroundings(set_environment: Callable[..., None], make_database: Callable[[str], str]) -> str:
    """The URL of an empty database that the environment names."""
    set_environment(DATABASE_URL=(url := make_database("sqlite")))
    return url


# config


def test_config_shows_settings_and_their_origins(surroundings: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text(f"WORKOS_API_KEY={KEY}\nWORKOS_CLIENT_ID=client_1\n")
    monkeypatch.setenv("OPS_TOKEN", "ann:x")
    shown = report("config")
    rows = {row["setting"]: row for row in shown["settings"]}
    assert rows["WORKOS_API_KEY"] == {
        "setting": "WORKOS_API_KEY",
        "value": "sk_test_\u2026(22 characters)",
        "origin": ".env",
    }
    assert rows["DATABASE_URL"]["origin"] == "environment" and rows["PORT"] == {
        "setting": "PORT",
        "value": 8000,
        "origin": "default",
    }
    assert shown["problems"] == []
    assert shown["warnings"] == [
        {"setting": "OPS_TOKEN", "saw": "is not a setting", "remedy": "did you mean OPS_TOKENS?"}
    ]
    ended = run("config")
    assert "WORKOS_API_KEY" in ended.stdout and KEY not in ended.output
    assert ended.stderr == "workos-sync: warning: OPS_TOKEN is not a setting; did you mean OPS_TOKENS?\n"


def test_config_shows_the_other_settings_beside_an_invalid_one(
    surroundings: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PORT", "high")
    ended = run("config", exit_code=2)
    assert "WORKOS_API_KEY" in ended.stdout
    assert (
        ended.stderr.startswith("workos-sync: PORT is not a whole number from 0 to 65535") and "'high'" in ended.stderr
    )
    assert [problem["setting"] for problem in report("config", exit_code=2)["problems"]] == ["PORT"]


def test_env_file_in_utf16_is_one_line(surroundings: str) -> None:
    Path(".env").write_text("PORT=1\n", "utf-16")
    for arguments in (["status"], ["web"], ["migrate"], ["config"]):
        (line,) = run(*arguments, exit_code=2).stderr.splitlines()
        assert line.startswith("workos-sync: .env is not UTF-8"), line
    (row, other) = json.loads(run("doctor", "--json", exit_code=1).stdout)
    assert (row["name"], row["level"], other["name"]) == (".env", "failure", "other checks")


# Times


@click.command()
@options.time("--since", "A time.")
def show(since: datetime) -> None:
    """Print a time."""
    click.echo(since.isoformat())


def since(text: str) -> datetime:
    ended = CliRunner().invoke(show, ["--since", text])
    assert ended.exit_code == 0, ended.output
    return datetime.fromisoformat(ended.output.strip())


@freeze_time(NOW)
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-31", datetime(2026, 1, 31, tzinfo=UTC)),
        ("2026-01-31T12:30:00", datetime(2026, 1, 31, 12, 30, tzinfo=UTC)),
        ("2026-01-31 12:30", datetime(2026, 1, 31, 12, 30, tzinfo=UTC)),
        ("2026-01-31T12:30Z", datetime(2026, 1, 31, 12, 30, tzinfo=UTC)),
        ("2026-01-31t12:30z", datetime(2026, 1, 31, 12, 30, tzinfo=UTC)),
        ("20260131T123000Z", datetime(2026, 1, 31, 12, 30, tzinfo=UTC)),
        ("2026-01-31T12:30:00.123Z", datetime(2026, 1, 31, 12, 30, 0, 123_000, tzinfo=UTC)),
        ("2026-01-31T12:30:00.123456+00:00", datetime(2026, 1, 31, 12, 30, 0, 123_456, tzinfo=UTC)),
        ("2026-01-31T12:30:00+02:00", datetime(2026, 1, 31, 10, 30, tzinfo=UTC)),
        ("2026-W05-6", datetime(2026, 1, 31, tzinfo=UTC)),
        ("now", NOW),
        (" Yesterday ", datetime(2026, 2, 28, tzinfo=UTC)),
        ("today", datetime(2026, 3, 1, tzinfo=UTC)),
        ("90s", NOW - timedelta(seconds=90)),
        ("30m", NOW - timedelta(minutes=30)),
        ("30min", NOW - timedelta(minutes=30)),
        ("2h", NOW - timedelta(hours=2)),
        ("2 h ago", NOW - timedelta(hours=2)),
        ("3d", NOW - timedelta(days=3)),
        ("1w", NOW - timedelta(weeks=1)),
    ],
)
def test_times_are_iso_8601_or_relative(text: str, expected: datetime) -> None:
    assert since(text) == expected


@pytest.mark.parametrize(
    "text", ["", "someday", "2h30", "-2h", "2y", "2026-13-01", "9999999999999d", "0001-01-01T00:00+14:00"]
)
def test_other_times_are_refused_with_the_accepted_forms(text: str) -> None:
    ended = CliRunner().invoke(show, ["--since", text])
    assert ended.exit_code == 2 and "2026-01-31T12:30:00.123Z" in ended.output and "yesterday" in ended.output


@given(st.datetimes(timezones=st.just(UTC)))
def test_every_time_in_our_own_json_is_accepted(at: datetime) -> None:
    assert since(json.loads(json_format.as_json({"at": at}))["at"]) == at


# Streams that are not UTF-8


@pytest.mark.long
def test_output_fits_every_encoding(surroundings: str, configured_engine: Engine) -> None:
    events = [
        made("organization.created", id="org_1", name="\u65e5\u672c \u20ac"),
        made("user.created", id="user_1", first_name="\u0141ukasz"),
        made("organization_membership.created", id="om_1", organization_id="org_1", user_id="user_1"),
    ]
    apply_events(configured_engine, events)
    outer = environment(DATABASE_URL=surroundings, COLUMNS=200, LC_ALL="C")
    for encoding, *arguments in (
        ("ascii", "workspaces"),
        ("ascii", "members", "org_\u65e5"),
        ("latin-1", "explain", "org_1"),
    ):
        ended = subprocess.run(
            [sys.executable, "-m", "worker.cli", *arguments],
            env=outer | {"PYTHONIOENCODING": encoding},
            capture_output=True,
            check=False,
            timeout=60,
        )
        shown = ended.stdout + ended.stderr
        assert b"Traceback" not in shown and b"Unicode" not in shown, shown
        assert ended.returncode == (1 if arguments[-1] == "org_\u65e5" else 0), shown


def test_argument_that_is_not_text_is_refused_in_one_line(surroundings: str) -> None:
    outer = environment(DATABASE_URL=surroundings)
    ended = subprocess.run(
        [sys.executable.encode(), b"-m", b"worker.cli", b"members", b"org_\xff"],
        env=outer,
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == 2 and b"an argument is not valid text" in ended.stderr, ended.stderr


def test_numbers_out_of_range_are_usage_errors(surroundings: str) -> None:
    for arguments in (["hooks", "replay", "crm", "--change", "9" * 20], ["worker", "--processes", "9" * 9]):
        assert "9" * 9 in run(*arguments, exit_code=2).stderr


UNUSABLE: dict[str, tuple[dict[str, str], str]] = {
    "error reports": ({"SENTRY_DSN": "https://key@sentry.example/not-a-number"}, "SENTRY_DSN is not a DSN"),
    "traces": (
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318", "OTEL_BSP_MAX_QUEUE_SIZE": "1"},  # less than a batch
        "a variable OTEL_EXPORTER_OTLP_... or OTEL_BSP_... is invalid",
    ),
}


@pytest.mark.parametrize("what", UNUSABLE)
@pytest.mark.parametrize("command", ["worker", "web", "clock"])
def test_unusable_settings_of_reports_end_the_command_and_not_each_of_its_processes(
    surroundings: str, command: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, message = UNUSABLE[what]
    for name, value in {"WORKOS_WEBHOOK_SECRETS": KEY, **settings}.items():
        monkeypatch.setenv(name, value)
    line = run(command, exit_code=2).stderr.splitlines()[-1]
    assert line.startswith(f"workos-sync: {message}"), line


def test_embedded_server_without_a_usable_folder_is_one_line(
    surroundings: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REDIS_URL")
    (tmp_path / ".workos-sync").write_text("a file")
    (line,) = run("worker", exit_code=2).stderr.splitlines()
    assert line.startswith(f"workos-sync: {tmp_path}/.workos-sync cannot be used: ") and "REDIS_URL" in line
