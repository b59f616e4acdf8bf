"""The command line: what lists and reports look like on terminals of several widths, piped, and as JSON."""

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import update

from models.database import in_transaction, open_engine
from models.tables import Event
from tests.support import JSON, commands
from tests.support.cli import on_terminal, run
from tests.support.filled import ERROR, fill
from worker.cli import main

LISTS = [" ".join(path) for path, command in commands(main) if any("--jsonl" in p.opts for p in command.params)]
for path in ("endpoints list", "notify test"):
    LISTS.remove(path)  # they need WorkOS or a target, which this installation has not
ARGUMENTS = {"members": "{organization}"}
REPORTS = (
    *("status", "doctor", "explain {email}", "explain {organization}", "events show {event}", "events show {failed}"),
    *("runs show {run}", "plan --set ROLE_MAP=member=admin", "replay --failed --dry-run"),
)
WIDTHS = (60, 80, 120)
ID = re.compile(r"\b[a-z_]+_[0-9A-HJKMNP-TV-Z]{26}\b")
FRAME = set("│┃━─┏┌╭|")


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Iterator[tuple[str, JSON]]:
    """The URL of a filled database, and ids in it."""
    path = tmp_path_factory.mktemp("filled") / "mirror.db"
    path.write_bytes(sqlite_template.read_bytes())
    engine = open_engine(f"sqlite:///{path}")
    yield f"sqlite:///{path}", fill(engine)
    engine.dispose()


@pytest.fixture
def ids(filled: tuple[str, JSON], set_environment: Callable[..., None], restored_logging: None) -> JSON:
    """Ids in the database that the environment names."""
    url, found = filled
    set_environment(DATABASE_URL=url)
    return found


def words(line: str, ids: JSON) -> list[str]:
    return f"{line} {ARGUMENTS.get(line, '')}".format(**ids).split()


def check_layout(text: str, width: int) -> None:
    """No line is too long, unless it is one word; nothing has a frame, and nothing is colored."""
    too_long = [line for line in text.splitlines() if len(line) > width and len(line.split()) > 1]
    assert too_long == []
    assert not FRAME & set(text) and "\x1b" not in text


@pytest.mark.parametrize("line", LISTS)
def test_list_fits_terminals_and_is_one_record_per_line_elsewhere(ids: JSON, line: str) -> None:
    arguments = words(line, ids)
    piped = CliRunner().invoke(main, arguments).stdout
    header, *records = piped.splitlines()
    assert records and "\x1b" not in piped
    assert {record.count("\t") for record in records} == {header.count("\t")}
    shown = [id for record in records for id in ID.findall(record)]
    for width in WIDTHS:
        text = on_terminal(*arguments, columns=width, exit_code=None)
        check_layout(text, width)
        assert [id for id in shown if id not in text] == []
    assert on_terminal(*arguments, columns=80, exit_code=None, color=True).startswith("\x1b[")
    assert len(CliRunner().invoke(main, [*arguments, "--wide"]).stdout.splitlines()) == len(records) + 1

    listed = [json.loads(row) for row in CliRunner().invoke(main, [*arguments, "--jsonl"]).stdout.splitlines()]
    document = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).stdout)
    assert len(listed) == len(records)
    assert listed in (document, *(document.values() if isinstance(document, dict) else ())) or line == "config"

    first = header.split("\t")[0]
    chosen = CliRunner().invoke(main, [*arguments, "--columns", first]).stdout.splitlines()
    assert chosen == [piped_line.split("\t")[0] for piped_line in piped.splitlines()]
    unknown = run(*arguments, "--columns", f"{first},nonsense", exit_code=2).stderr.splitlines()[-1]
    assert "'nonsense'" in unknown and first in unknown


@pytest.mark.parametrize("line", REPORTS)
def test_report_fits_terminals_and_is_plain_elsewhere(ids: JSON, line: str) -> None:
    arguments = words(line, ids)
    piped = CliRunner().invoke(main, arguments).stdout
    assert "\x1b" not in piped and {"\t" in row for row in piped.splitlines() if row} == {True}
    for width in WIDTHS:
        text = on_terminal(*arguments, columns=width, exit_code=None)
        check_layout(text, width)
        assert re.search(r"^(\w+ )*\w+ +$", text, re.MULTILINE) is None  # no empty field
    json.loads(CliRunner().invoke(main, [*arguments, "--json"]).stdout)


def test_list_without_rows_says_so_beside_the_answer(ids: JSON) -> None:
    ended = run("events", "list", "--type", "nonsense")
    assert (ended.stdout.count("\n"), ended.stderr) == (1, "no events match\n")
    assert on_terminal("events", "list", "--type", "nonsense") == ""
    assert json.loads(run("events", "list", "--type", "nonsense", "--json").stdout) == []


def test_list_that_is_cut_off_says_so_beside_the_answer(ids: JSON) -> None:
    assert "only 2 rows" in run("events", "list", "--limit", "2", "--jsonl").stderr
    assert run("auto-join", "domains").stderr == ""


def test_tabs_and_line_breaks_are_escaped_when_piped(ids: JSON) -> None:
    piped = run("audit", "list", "--columns", "reason").stdout.splitlines()
    assert "left\\tthe\\ncompany" in piped
    assert "left the\n" in on_terminal("audit", "list", "--columns", "reason")


def test_identical_errors_of_a_hook_are_shown_once(ids: JSON) -> None:
    text = on_terminal("hooks", "failed", exit_code=1)
    assert "5 failed deliveries" in text and text.count(ERROR.split("\n")[1]) == 1
    assert len(run("hooks", "failed", exit_code=1).stdout.splitlines()) == 6


def test_events_that_failed_alike_are_shown_once_with_traceback_and_workspaces(ids: JSON) -> None:
    engine = open_engine(os.environ["DATABASE_URL"])
    failed = Event.status == "failed"
    in_transaction(engine, lambda tx: tx.execute(update(Event).where(failed).values(traceback=ERROR)))
    text = on_terminal("events", "failures", exit_code=1)
    assert text.count(ERROR.split("\n")[1]) == 2 and re.search(r"events +3\n", text) and "workspaces  org_" in text
    engine.dispose()


@pytest.mark.parametrize(("command", "verdict"), [("status", "PROBLEM: Mirror is"), ("doctor", "FAILURE: ")])
def test_verdict_comes_first_then_problems_with_remedies(ids: JSON, command: str, verdict: str) -> None:
    text = on_terminal(command, columns=80, exit_code=1)
    first, _, problem, *_ = text.splitlines()
    assert first.startswith(verdict) and problem.startswith(("problem", "failure"))
    assert "→ run workos-sync events failures" in text
    assert on_terminal(command, exit_code=1, color=True).startswith("\x1b[31m\x1b[1m")


def test_watch_ends_quietly_with_the_exit_code_of_the_last_status(ids: JSON, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupt)
    assert "Mirror is not trustworthy" in on_terminal("status", "--watch", exit_code=1)
    assert "--watch needs a terminal" in run("status", "--watch", exit_code=2).stderr
