"""Real commands over PostgreSQL, Valkey and a sandbox WorkOS."""

from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Engine

from models.database import open_engine
from tests.support.processes import QUICK, Commands, Valkey
from tests.support.resync import settings_of
from worker.sandbox import Sandbox


@pytest.fixture
def commands_engine(
    make_database: Callable[[str], str], commands: Commands, sandbox: Sandbox, valkey: Valkey
) -> Iterator[Engine]:
    """An engine on the PostgreSQL database of the commands, whose WorkOS is the module's `sandbox`."""
    url = make_database("postgresql")
    commands.settings |= QUICK | settings_of(sandbox) | {"DATABASE_URL": url, "REDIS_URL": valkey.url}
    opened = open_engine(url)
    yield opened
    opened.dispose()
