"""Settings: all problems are named at once, and no secret is printed."""

import re
from pathlib import Path

import pytest
from pydantic import SecretStr

from models.database import database_url
from worker.bootstrap import drain_limits
from worker.errors import ConfigurationError
from worker.settings import Settings, load_settings


@pytest.fixture(autouse=True)
def _clean_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)


def problems(monkeypatch: pytest.MonkeyPatch, *required: str, **environment: str) -> str:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as caught:
        load_settings(*required)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def named(problem: str) -> set[str]:
    """The settings that a message names."""
    return {name.upper() for name in Settings.model_fields if re.search(rf"\b{name.upper()}\b", problem)}


def test_only_the_webhook_secret_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().port == 8000
    problem = problems(monkeypatch, "workos_webhook_secrets")
    assert problem.startswith("WORKOS_WEBHOOK_SECRETS is not set: ")


def test_all_invalid_settings_are_named_together(monkeypatch: pytest.MonkeyPatch) -> None:
    found = problems(
        monkeypatch,
        PORT="high",
        DATABASE_URL="mysql://host/name",
        ROLE_MAP="owner=king",
        WORKOS_WEBHOOK_SECRETS="a,,b",
        WEBHOOK_ALLOWED_IPS="1.2.3.4,nowhere",
        MAX_ATTEMPTS="0",
    )
    assert named(found) == {
        *("PORT", "DATABASE_URL", "ROLE_MAP", "WORKOS_WEBHOOK_SECRETS", "WEBHOOK_ALLOWED_IPS", "MAX_ATTEMPTS")
    }


def test_missing_and_invalid_settings_are_named_together(monkeypatch: pytest.MonkeyPatch) -> None:
    found = problems(monkeypatch, "workos_webhook_secrets", PORT="high")
    assert named(found) == {"PORT", "WORKOS_WEBHOOK_SECRETS"}


@pytest.mark.parametrize("secrets", ["", " ", ",", "a,,b", "a,", ",a", " , "])
def test_empty_webhook_secret_is_refused(monkeypatch: pytest.MonkeyPatch, secrets: str) -> None:
    problem = problems(monkeypatch, "workos_webhook_secrets", WORKOS_WEBHOOK_SECRETS=secrets)
    assert problem.startswith("WORKOS_WEBHOOK_SECRETS ")


def test_webhook_secrets_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKOS_WEBHOOK_SECRETS", "one, two ")
    assert load_settings().workos_webhook_secrets == (SecretStr("one"), SecretStr("two"))


@pytest.mark.parametrize("role_map", ["owner", "owner=", "=admin", "owner=king", "owner=admin,viewer", "owner:admin"])
def test_invalid_role_map_is_refused(monkeypatch: pytest.MonkeyPatch, role_map: str) -> None:
    problem = problems(monkeypatch, ROLE_MAP=role_map)
    assert problem.startswith("ROLE_MAP ") and "admin or member" in problem


def test_role_map_is_added_to_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROLE_MAP", "owner=admin, viewer=member")
    assert load_settings().role_map == {"admin": "admin", "member": "member", "owner": "admin", "viewer": "member"}


@pytest.mark.parametrize(
    "url",
    [
        "",
        "not a url",
        "mysql://root:hunter2@host/name",
        "postgresql://user:hunter2@host:port/name",
        "postgresql://user:p@ss:hunter2@host/name",
    ],
)
def test_message_for_an_invalid_database_url_has_no_password(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    problem = problems(monkeypatch, DATABASE_URL=url)
    assert problem.startswith("DATABASE_URL ")
    assert "hunter2" not in problem


@pytest.mark.parametrize(
    ("raw", "driver"),
    [
        ("postgres://u@h/n", "postgresql+psycopg"),
        ("postgresql://u@h/n", "postgresql+psycopg"),
        ("postgresql+psycopg2://u@h/n", "postgresql+psycopg"),
        ("sqlite:///x.db", "sqlite"),
    ],
)
def test_database_url_gets_the_installed_driver(raw: str, driver: str) -> None:
    assert database_url(raw).drivername == driver


def test_repr_of_settings_has_no_secret() -> None:
    settings = Settings(
        _env_file=None,
        database_url="postgresql://user:hunter1@host/name",
        redis_url="redis://:hunter2@host/0",
        workos_webhook_secrets="hunter3,hunter4",
        webhook_path_token="hunter5",
    )
    assert "hunter" not in f"{settings!r} {settings}"


def test_message_for_an_invalid_value_does_not_quote_it(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = problems(monkeypatch, PORT="hunter1", MAX_ATTEMPTS="hunter2", LOG_FORMAT="hunter3", SWEEP_SECONDS="hunter4")
    assert named(wrong) == {"PORT", "MAX_ATTEMPTS", "LOG_FORMAT", "SWEEP_SECONDS"}
    assert "hunter" not in wrong


def test_environment_overrides_the_env_file_and_options_override_both(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("PORT=1111\nBATCH_SIZE=7\n")
    monkeypatch.setenv("PORT", "2222")
    settings = load_settings()
    assert (settings.port, settings.batch_size) == (2222, 7)
    assert load_settings(port=3333).port == 3333


def test_drain_limits_come_from_the_settings() -> None:
    limits = drain_limits(Settings(_env_file=None, batch_size=3, max_attempts=4, first_backoff_seconds=5))
    assert (limits.batch_size, limits.max_attempts, limits.first_backoff) == (3, 4, 5)


def test_tokens_are_parsed_with_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPS_TOKENS", "ann: with:colons ,bob:other")
    monkeypatch.setenv("API_TOKENS", "nameless")
    settings = load_settings()
    assert {name: token.get_secret_value() for name, token in settings.ops_tokens.items()} == {
        "ann": "with:colons",
        "bob": "other",
    }
    assert settings.api_tokens == {"token": SecretStr("nameless")}


@pytest.mark.parametrize(
    "tokens", ["nameless", "ann:", ":secret-1", "ann:secret-1,ann:secret-2", "a:secret-1,b:secret-1", "a:x,,b:y"]
)
def test_invalid_tokens_are_refused_and_not_quoted(monkeypatch: pytest.MonkeyPatch, tokens: str) -> None:
    problem = problems(monkeypatch, OPS_TOKENS=tokens)
    assert named(problem) == {"OPS_TOKENS"} and "secret-" not in problem


def test_repr_of_settings_has_no_token() -> None:
    text = repr(Settings(_env_file=None, ops_tokens="ann:secret-1", api_tokens="secret-2"))
    assert "secret-" not in text and "ann" in text


def test_role_mapped_twice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROLE_MAP", "owner=member,owner=admin")
    with pytest.raises(ConfigurationError, match="ROLE_MAP has the same slug twice"):
        load_settings()
