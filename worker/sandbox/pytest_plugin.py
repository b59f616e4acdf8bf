"""A fixture for the tests of a product: `pytest_plugins = ["worker.sandbox.pytest_plugin"]` in its conftest.py."""

from collections.abc import Iterator

import pytest

from worker.sandbox.server import Sandbox


@pytest.fixture
def workos_sandbox() -> Iterator[Sandbox]:
    """A running, empty offline WorkOS. See docs/development.md, The pytest fixture."""
    with Sandbox() as sandbox:
        yield sandbox
