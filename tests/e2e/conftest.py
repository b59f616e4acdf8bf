"""Fixtures of the tests in a browser: Debian's Chromium, and a page in it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

DESKTOP = {"width": 1280, "height": 900}
TIMEOUT_MS = 30_000


@pytest.fixture
def folder(quick_folder: Path) -> Iterator[Path]:
    """An empty folder. Its path leaves room for the name of a socket."""
    (made := quick_folder / "start").mkdir()
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that fails the test if a script does, or if the policy blocks anything."""
    wrong: list[str] = []
    context = browser.new_context(viewport=DESKTOP)  # type: ignore[arg-type]  # a dict of the right shape
    context.set_default_timeout(TIMEOUT_MS)
    opened = context.new_page()
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    yield opened
    context.close()
    assert [line for line in wrong if "401" not in line] == []
