"""Keys in Redis begin with the environment's name, which may be set in `.env`."""

import os
from pathlib import Path

import pytest

from worker.env import redis_keys
from worker.env.redis_keys import RQ_VARIABLE, VARIABLE, redis_key


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, and an environment without a name, which the test may change."""
    for name in (VARIABLE, RQ_VARIABLE):
        monkeypatch.setenv(name, "")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def prefixes() -> tuple[str, str | None]:
    redis_keys.separate()
    return redis_key("counts"), os.environ[RQ_VARIABLE] or None


@pytest.mark.parametrize("name", ["", "Production", "a_b", "-a", "a" * 33])
def test_without_a_valid_name_keys_have_no_prefix(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, name)
    assert prefixes() == ("workos-sync:counts", None)


@pytest.mark.parametrize("in_file", [False, True])
def test_every_key_begins_with_the_name(in_file: bool, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / ".env").write_text(f"{VARIABLE}={'eu-2' if in_file else 'us'}\n")
    if not in_file:
        monkeypatch.setenv(VARIABLE, "eu-2")
    assert prefixes() == ("eu-2:workos-sync:counts", "eu-2:rq")


def test_an_invalid_name_is_not_replaced_by_that_of_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / ".env").write_text(f"{VARIABLE}=production\n")
    monkeypatch.setenv(VARIABLE, "Staging")
    assert prefixes() == ("workos-sync:counts", None)


def test_an_unreadable_file_is_left_to_the_settings(folder: Path) -> None:
    (folder / ".env").write_bytes("ENVIRONMENT_NAME=a".encode("utf-16"))
    assert prefixes() == ("workos-sync:counts", None)
