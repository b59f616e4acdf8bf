"""Tests of what the rows print about a peer that cannot be installed. No registry is asked."""

from pathlib import Path

import pytest

from tests.benchmarks.peers.install import MissingError, node_modules


def program(folder: Path, name: str, script: str) -> None:
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def test_without_npm_there_is_no_node_peer(tmp_path: Path, programs: Path) -> None:
    program(programs, "node", "exit 0")
    with pytest.raises(MissingError, match=r"^npm is missing$"):
        node_modules(tmp_path)


def test_an_install_that_fails_gives_its_first_error_as_the_reason(tmp_path: Path, programs: Path) -> None:
    program(programs, "node", "exit 0")
    program(
        programs,
        "npm",
        "echo 'npm warn old'; echo 'npm error code ECONNREFUSED' >&2; echo 'npm error more' >&2; exit 7",
    )
    with pytest.raises(MissingError, match=r"^npm ended with code 7: npm error code ECONNREFUSED$"):
        node_modules(tmp_path)


def test_packages_are_installed_once(tmp_path: Path, programs: Path) -> None:
    program(programs, "node", "exit 0")
    program(programs, "npm", "echo once >> calls")
    assert node_modules(tmp_path) == node_modules(tmp_path)
    assert (tmp_path / "node" / "calls").read_text() == "once\n"
