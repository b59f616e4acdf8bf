"""Start-up is fast: a command imports only what it needs."""

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from models.tables import Base
from worker.kinds import KINDS

ROOT = Path(__file__).parents[2]

SLOW = (
    "sqlalchemy",
    "pydantic",
    "redis",
    "rq",
    "structlog",
    "rich.console",
    "httpx2",
    "workos",
    "alembic",
    "flask",
    "asyncio",
)
"""Libraries that take a tenth of a second or more to import."""
DECLARATIONS = """
import sys
import click
from worker.cli import main

def show_help(group, path):
    context = click.Context(group, info_name=path)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        command.get_help(click.Context(command, info_name=name, parent=context))
        if isinstance(command, click.Group):
            show_help(command, name)

show_help(main, "workos-sync")
for arguments in (["--help"], ["--version"], ["evnts"], ["events", "lst"], ["resync", "--dryrun"], ["members"]):
    try:
        main(arguments)
    except SystemExit:
        pass
"""
REPORT = "import sys; from worker.cli import main; main(['events', 'list', '--json'], standalone_mode=False)"
PRINT = "\nprint('', *(name for name in sys.argv[1:] if name in sys.modules), file=sys.stderr)"


def imported(program: str, **settings: str) -> set[str]:
    """The slow libraries that are imported when a program has ended."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | settings
    ran = subprocess.run(
        [sys.executable, "-c", program + PRINT, *SLOW], capture_output=True, env=environment, text=True, check=True
    )
    return set(ran.stderr.splitlines()[-1].split())


def test_help_version_and_usage_errors_import_no_slow_library() -> None:
    assert imported(DECLARATIONS) == set()


def test_migrate_creates_all_indexes_also_those_of_mirrored_objects(tmp_path: Path) -> None:
    """In a process of its own: here, other tests have imported every table."""
    environment = os.environ | {"DATABASE_URL": f"sqlite:///{tmp_path / 'mirror.db'}", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", "worker.cli", "migrate"], check=True, env=environment, capture_output=True)
    with closing(sqlite3.connect(tmp_path / "mirror.db")) as database:
        made = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'index'")}
    mirrored = {kind.table.__tablename__ for kind in KINDS.values()}
    declared = {str(index.name) for name in mirrored for index in Base.metadata.tables[name].indexes}
    assert "ix_users_by_address" in declared and declared <= made


def test_a_report_of_the_database_imports_neither_redis_nor_workos(make_database: Any) -> None:
    allowed = {"sqlalchemy", "pydantic", "structlog", "asyncio"}
    servers = {"DATABASE_URL": make_database("sqlite"), "REDIS_URL": "rediss://sync:p-w.d@redis.example.com:6380/1"}
    assert imported(REPORT, **servers) <= allowed
