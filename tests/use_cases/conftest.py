"""Parts over one SQLite file, for what does not depend on the kind of database: PostgreSQL takes its time."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import structlog
from flask.testing import FlaskClient
from sqlalchemy import Engine
from structlog.testing import capture_logs

from webhooks.app import create_app
from worker.wiring import Wiring


@pytest.fixture
def local(make_database: Callable[[str], str], build_wiring: Callable[..., Wiring]) -> Callable[..., Wiring]:
    """As `make_wiring`."""
    return partial(build_wiring, database_url=make_database("sqlite"))


@pytest.fixture
def local_wiring(local: Callable[..., Wiring]) -> Wiring:
    """As `wiring`."""
    return local()


@pytest.fixture
def local_door(local_wiring: Wiring) -> FlaskClient:
    """As `door`."""
    return create_app(local_wiring).test_client()


@pytest.fixture
def local_engine(local_wiring: Wiring) -> Engine:
    """As `engine`."""
    return local_wiring.engine


@pytest.fixture
def logs() -> Iterator[list[Any]]:
    """The log lines of the test, with what is bound to them."""
    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as captured:
        yield captured
