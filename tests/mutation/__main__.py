"""Mutation testing of the decision, the auto-join rules and the views: `python -m tests.mutation [target ...]`.

mutmut mutates copies of the sources, one mutant for each run of the tests that reach it; mypy catches some before that.
Exits 1 if fewer than 90 % of a target's mutants are killed, or if a mutant of a view survives on either database.
mutmut changes neither decorated functions nor what is outside of functions.
"""

import os
import shutil
import subprocess
import sys
from collections import Counter
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest

from models.views import VIEWS
from tests.mutation import views


class Target(NamedTuple):
    """The code to mutate, and the tests that should notice."""

    sources: list[str]
    tests: list[str]
    without: tuple[str, ...] = ()


DECISION_TESTS = ("decide", "kinds", "mentions", "payload", "payload_secrets", "snapshots")
AUTO_JOIN_TESTS = ("auto_join", "auto_join_states", "joins", "provision", "provision_blocks")
TARGETS = {
    "decision": Target(
        ["worker/decision/*", "worker/kinds/*"],
        [f"tests/unit/test_{name}.py" for name in DECISION_TESTS],
        without=("worker/kinds/addresses.py",),  # queries, which these tests do not make
    ),
    "auto_join": Target(
        ["worker/mirror/auto_join.py"],
        [*(f"tests/use_cases/test_{name}.py" for name in AUTO_JOIN_TESTS), "tests/integration/test_views.py"],
    ),
}
VIEW_TESTS = {"member_permissions": ("permissions",), "mirror_status": ("views", "host_contract")}
"""The names of the tests that should notice a mutant of a view; of any other view, `("views",)`."""
LEFT_OUT = "not postgresql and not shuffled and not in_any_order"
"""SQLite alone, for speed; and without random histories, which every survivor would wait for."""
LEAST = 0.9
EQUIVALENT = {
    "workspace_members drop: membership.role = 'admin'": "there is one other role, and it counts as itself",
    "auto_join_blocks drop: "
    "NOT membership.deleted_by IS NULL OR membership.status IS NULL OR membership.status <> 'active'": (
        "an active membership is itself one of those that the NOT EXISTS below looks for"
    ),
    "mirror_status inner join: LEFT JOIN tail ON tail.id = 'events'": "a migration inserts the row",
    "mirror_status drop: tail.id = 'events'": "the table has one row",
    'return value[:MAX_TEXT].replace("\\0", "\\ufffd").encode("UTF-8", "replace").decode("utf-8")': "the same encoding",
    'return value[:MAX_TEXT].replace("\\0", "\\ufffd").encode("utf-8", "replace").decode("UTF-8")': "the same encoding",
    "if len(value) < MAX_TEXT and value.isascii() and value.isprintable():": "the slow path gives the same text",
    "return _tie_rank(one, tie_break) <= _tie_rank(other, tie_break)": "the ranks differ, as the event ids do",
    "if name not in winner.versions or winner.versions[name].rank <= version.rank": "one version has one content",
    "read_at = [version.event_at for version in stored if version.from_api and event.times <= version.times]": (
        "equal times are a tie, which is found before"
    ),
    'for spelled in {text, unquote(text)} if ("%" in text) or True else (text,):': "without %, both are the same",
    'texts, is_json = {ESCAPE.sub(_unescaped, body.decode("UTF-8", "replace"))}, False': "the same encoding",
    'if rivals := sorted(holders - {claim.organization_id or "XXXX"}):': "no holder has an empty id",
}
"""Mutants that change nothing anyone can see, each with the reason: a view and its change, or the changed line."""

ROOT = Path(__file__).parents[2]
WORK = ROOT / "build/mutation"
SETTINGS = """
[tool.mutmut]
source_paths = ["models", "worker", "webhooks"]
only_mutate = {sources}
do_not_mutate = {without}
pytest_add_cli_args_test_selection = {tests}
pytest_add_cli_args = [
  "-p", "no:cacheprovider", "-n", "0", "--both-databases", "--hypothesis-seed=0", "-k", "{left_out}"
]
timeout_constant = 20.0
timeout_multiplier = 3.0
type_check_command = ["mypy", {packages}, "--output", "json", "--config-file", "../mypy.ini"]
"""
MYPY = "[mypy]\nexplicit_package_bases = True\nplugins = pydantic.mypy\nignore_missing_imports = True\n"


def mutmut(folder: Path, *arguments: str) -> str:
    """Run mutmut in `folder` and return what it prints."""
    tools = Path(sys.executable).parent
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    command = [str(tools / "mutmut"), *arguments]
    environment = os.environ | {"PATH": path}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"mutmut {' '.join(arguments)} failed:\n{done.stdout[-2000:]}{done.stderr}")
    return done.stdout


def copy_checkout(folder: Path, target: Target) -> None:
    """Copy the checkout to `folder`, with mutmut's settings: it takes them from nowhere else."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__"))
    packages = ", ".join(f'"{source.removesuffix("/*")}"' for source in target.sources)
    with (folder / "pyproject.toml").open("a") as file:
        given = target._asdict() | {"without": list(target.without)}
        file.write(SETTINGS.format(**given, packages=packages, left_out=LEFT_OUT))
    (folder / "mypy.ini").write_text(MYPY)


def changed_line(folder: Path, name: str) -> str:
    """Return the line that a mutant puts in place of another."""
    added = [line[1:].strip() for line in mutmut(folder, "show", name).splitlines() if line.startswith("+")]
    return added[-1]


def code(name: str, target: Target) -> bool:
    """Mutate a target; return whether enough of its mutants are killed. Prints a row for each module."""
    folder = WORK / name
    copy_checkout(folder, target)
    mutmut(folder, "run", "--max-children", "1")
    found = [line.strip().split(": ") for line in mutmut(folder, "results", "--all", "true").splitlines()]
    modules: dict[str, Counter[str]] = {}
    for mutant, status in found:
        changed = changed_line(folder, mutant) if status in {"survived", "no tests"} else ""
        if changed and changed not in EQUIVALENT:
            print(f"{status}: {mutant}: {changed}")
        modules.setdefault(mutant.rpartition(".")[0], Counter())["equivalent" if changed in EQUIVALENT else status] += 1
    print(f"{'module':40}{'mutants':>9}{'killed':>9}{'by mypy':>9}{'survived':>10}{'time-out':>10}{'equivalent':>12}")
    total: Counter[str] = Counter()
    for module, row in sorted(modules.items()):
        total += row
        report(module, row)
    report(name, total)
    killed = total["killed"] + total["caught by type check"] + total["timeout"]
    return killed >= LEAST * (total.total() - total["equivalent"])


def report(name: str, row: Counter[str]) -> None:
    survived = row["survived"] + row["no tests"] + row["suspicious"]
    shown = f"{row.total():9}{row['killed']:9}{row['caught by type check']:9}{survived:10}{row['timeout']:10}"
    print(f"{name:40}{shown}{row['equivalent']:12}", flush=True)


def view_mutants() -> bool:
    """Mutate the views; return whether every mutant is killed on both databases. Prints a row for each view."""
    WORK.mkdir(parents=True, exist_ok=True)
    print(f"{'view':40}{'mutants':>9}" + "".join(f"{'killed on ' + kind:>22}" for kind in views.KINDS) + "  equivalent")
    good = [mutants_of(view) for view in VIEWS]
    return all(good)


def view_tests(view: str) -> list[str]:
    """Return the tests that should notice a mutant of a view."""
    return [f"tests/use_cases/test_{name}.py" for name in VIEW_TESTS.get(view, ("views",))]


def mutants_of(view: str) -> bool:
    """Mutate one view; return whether every mutant is killed on both databases. Prints a row, and survivors."""
    plugin = views.Mutation(view)
    with (WORK / f"{view}.log").open("w") as log, redirect_stdout(log):
        ended = pytest.main(
            ["-q", "-n", "0", "-p", "no:cacheprovider", "--both-databases", "--tb=no", *view_tests(view)],
            [plugin, views],
        )
    if ended not in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED}:
        sys.exit((WORK / f"{view}.log").read_text()[-2000:])
    alive = plugin.alive()
    lost = [(kind, mutant) for kind, mutant in alive if f"{view} {mutant.change}" not in EQUIVALENT]
    for kind, mutant in lost:
        print(f"survived on {kind}: {view}: {mutant.change}")
    left, number = Counter(kind for kind, _ in alive), sum(bool(mutant.change) for mutant in plugin.mutants)
    equivalent = sum(name.startswith(f"{view} ") for name in EQUIVALENT)
    killed = "".join(f"{number - left[kind]:22}" for kind in views.KINDS)
    print(f"{view:40}{number:9}{killed}{equivalent:12}", flush=True)
    return not lost


if __name__ == "__main__":
    chosen = sys.argv[1:] or [*TARGETS, "views"]
    good = [view_mutants() if name == "views" else code(name, TARGETS[name]) for name in chosen]
    sys.exit(0 if all(good) else 1)
