"""The built package, installed into its own environment, runs from an empty folder with its pages and migrations."""

import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import urllib.request
from collections.abc import Iterator
from http.cookiejar import CookieJar
from pathlib import Path
from urllib.parse import urlencode

import pytest

from tests.support.processes import environment, eventually, listens
from tests.support.shell import files_of
from tests.support.stack.machine import ROOT, free_ports

pytestmark = pytest.mark.long

TOKEN = "ann-signs-in-with-this-token"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The installed `workos-sync`, beside the packages of the lock."""
    folder = tmp_path_factory.mktemp("install")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    wheel = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(wheel, check=True)
    own = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(own)], check=True)
    subprocess.run(
        [*pip, "--python", str(own), "install", "--no-deps", "--no-index", *map(str, folder.glob("*.whl"))], check=True
    )
    (packages,) = own.glob("lib/python*/site-packages")
    (packages / "lock.pth").write_text(sysconfig.get_path("purelib"))
    return own / "bin" / "workos-sync"


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder. Its path leaves room for the name of a socket."""
    with tempfile.TemporaryDirectory(prefix="wos-") as made:
        yield Path(made)


def clean_environment(**settings: object) -> dict[str, str]:
    """An environment without any path to the checkout."""
    seen = environment(WORKOS_WEBHOOK_SECRETS="whsec_test_0123456789", OPS_TOKENS=f"ann:{TOKEN}", **settings)
    return {name: value for name, value in seen.items() if not name.startswith("PYTHON")}


def run(program: Path, folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [str(program), *arguments]
    return subprocess.run(command, cwd=folder, env=clean_environment(), capture_output=True, text=True, check=False)


@pytest.mark.timeout(300)
def test_the_installed_package_is_complete(program: Path, folder: Path) -> None:
    assert run(program, folder, "--version").stdout.strip().endswith(" 2.0.0")
    unmigrated = run(program, folder, "web")
    assert unmigrated.returncode == 2 and "run: workos-sync migrate" in unmigrated.stderr
    migrated = run(program, folder, "migrate")
    assert migrated.returncode == 0, migrated.stderr
    found = run(program, folder, "doctor")
    assert found.returncode in {0, 1} and "Traceback" not in found.stdout + found.stderr, found.stderr
    assert "database" in found.stdout

    [port] = free_ports(1)
    with subprocess.Popen([program, "web"], cwd=folder, env=clean_environment(PORT=port, WEB_PROCESSES=1)) as web:
        try:
            eventually(lambda: listens(port) or web.poll() is not None, 60)
            check_pages(f"http://127.0.0.1:{port}")
        finally:
            web.terminate()
    assert web.returncode == 0


def check_pages(address: str) -> None:
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))

    def get(path: str, form: dict[str, str] | None = None) -> str:
        data = urlencode(form).encode() if form else None
        with browser.open(f"{address}{path}", data, timeout=30) as answer:
            return str(answer.read().decode())

    assert "alive" in get("/healthz")
    token = re.search(r'name="csrf_token" value="([^"]+)"', get("/ops/sign-in"))
    assert token is not None
    overview = get("/ops/sign-in", {"token": TOKEN, "csrf_token": token[1]})
    assert "Sign out" in overview
    static = set(re.findall(r'(?:href|src)="(/[^"]+\.(?:css|js)[^"]*)"', overview))
    assert len(static) == 2 and all(map(get, static))


@pytest.mark.timeout(300)
def test_the_example_suite_of_the_documentation_passes_in_an_empty_folder(program: Path, folder: Path) -> None:
    """`workos_sandbox` as a product uses it."""
    for name, content in files_of((ROOT / "docs" / "development.md").read_text()).items():
        (folder / name).write_text(content)
    settings = clean_environment()
    settings["PATH"] = f"{program.parent}{os.pathsep}{settings['PATH']}"
    command = [str(program.parent / "python"), "-m", "pytest", "-q", "-p", "no:schemathesis", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=folder, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout + done.stderr


def test_modules_are_imported_from_the_installed_copy(program: Path, folder: Path) -> None:
    code = "import models.migrate, webhooks.app, worker.cli; print(models.migrate.__file__, webhooks.app.__file__)"
    command = [str(program.parent / "python"), "-c", code]
    assert str(ROOT) not in subprocess.check_output(command, cwd=folder, env=clean_environment(), text=True)
