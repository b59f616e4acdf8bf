"""Files, sockets and locks are readable by their owner only, with any umask and after an older release."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.database import open_engine
from tests.support.inbox import pending
from tests.support.processes import Commands, eventually
from tests.support.stories import new_users, store

pytestmark = pytest.mark.long


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    """The umask that removes no permission: a file that is private here is private with every other one."""
    before = os.umask(0)
    yield
    os.umask(before)


def open_to_others(*paths: Path) -> list[str]:
    return [f"{path.name} {path.lstat().st_mode:o}" for path in paths if path.lstat().st_mode & 0o077]


def run_all(commands: Commands, database_url: str) -> None:
    """Run every process until an event has gone through all of them."""
    migrate = commands.start("migrate")
    assert migrate.process.wait(60) == 0, migrate.output()
    engine = open_engine(database_url)
    store(engine, new_users(1))
    clock = commands.start("clock", SWEEP_SECONDS=0.2)
    eventually(lambda: "sweep_rang" in clock.output(), 30)
    worker = commands.start("worker", "--processes", "1")
    commands.web()
    eventually(lambda: pending(engine) == 0, 30)
    engine.dispose()
    assert worker.process.poll() is None


def test_a_start_without_settings(commands: Commands) -> None:
    home = commands.folder / ".workos-sync"
    run_all(commands, f"sqlite:///{home}/mirror.db")
    made = [home, *home.rglob("*")]
    names = {path.name for path in made}
    assert {"mirror.db", "mirror.db-wal", "mirror.db-line", "valkey.sock", "valkey.lock", "valkey.log"} <= names
    assert open_to_others(*made) == []


def test_a_start_with_readable_files_of_an_older_release(commands: Commands) -> None:
    home = commands.folder / ".workos-sync"
    (home / "valkey" / "appendonlydir").mkdir(parents=True)
    left = [home / name for name in ("mirror.db-line", "mirror.db-turn", "valkey.lock", "valkey/valkey.log")]
    for file in left:
        file.touch()
    for path in (home, *home.rglob("*")):
        path.chmod(0o777)
    run_all(commands, f"sqlite:///{home}/mirror.db")
    assert open_to_others(home, *home.rglob("*")) == []


def test_an_sqlite_file_elsewhere(commands: Commands) -> None:
    folder = commands.folder / "data"
    folder.mkdir()
    for name in ("all.db", "all.db-line", "all.db-turn", "all.db.backup"):
        (folder / name).touch()
        (folder / name).chmod(0o644)
    folder.chmod(0o755)
    commands.settings["DATABASE_URL"] = f"sqlite:///{folder}/all.db"
    run_all(commands, f"sqlite:///{folder}/all.db")
    others = {folder / "all.db.backup"}
    assert open_to_others(*set(folder.iterdir()) - others) == []
    assert folder.stat().st_mode & 0o777 == 0o755, "the user's own folder keeps its mode"
    assert open_to_others(*others) == ["all.db.backup 100644"]
    assert open_to_others(commands.folder / ".workos-sync") == []
