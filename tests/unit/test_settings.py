"""Settings: all problems are named at once, and no secret is printed."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from models.database import database_url
from worker.bootstrap import drain_limits
from worker.errors import ConfigurationError
from worker.settings import RESTRICTIONS, SECRETS, Settings, bounds, load_settings, masks, read_settings

LONG = "0123456789abcdef"


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
    assert problem.startswith("WORKOS_WEBHOOK_SECRETS is not set; ")


def test_all_invalid_settings_are_named_together(monkeypatch: pytest.MonkeyPatch) -> None:
    found = problems(
        monkeypatch,
        PORT="high",
        DATABASE_URL="mysql://host/name",
        ROLE_MAP="owner=king",
        WORKOS_WEBHOOK_SECRETS="a,,b",
        ALLOW_PLAIN_HTTP="perhaps",
        WEBHOOK_ALLOWED_IPS="1.2.3.4,nowhere",
        MAX_ATTEMPTS="0",
    )
    assert named(found) == {
        *("PORT", "DATABASE_URL", "ROLE_MAP", "WORKOS_WEBHOOK_SECRETS", "WEBHOOK_ALLOWED_IPS", "MAX_ATTEMPTS"),
        "ALLOW_PLAIN_HTTP",
    }


def test_missing_and_invalid_settings_are_named_together(monkeypatch: pytest.MonkeyPatch) -> None:
    found = problems(monkeypatch, "workos_webhook_secrets", PORT="high")
    assert named(found) == {"PORT", "WORKOS_WEBHOOK_SECRETS"}


@pytest.mark.parametrize("secrets", ["", " ", ",", "a,,b", "a,", ",a", " , "])
def test_empty_webhook_secret_is_refused(monkeypatch: pytest.MonkeyPatch, secrets: str) -> None:
    problem = problems(monkeypatch, "workos_webhook_secrets", WORKOS_WEBHOOK_SECRETS=secrets)
    assert problem.startswith("WORKOS_WEBHOOK_SECRETS ")


def test_webhook_secrets_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKOS_WEBHOOK_SECRETS", f"one{LONG}, two{LONG} ")
    assert load_settings().workos_webhook_secrets == (SecretStr(f"one{LONG}"), SecretStr(f"two{LONG}"))


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
        workos_webhook_secrets=f"hunter3{LONG},hunter4{LONG}",
        webhook_path_token=f"hunter5{LONG}",
    )
    assert "hunter" not in f"{settings!r} {settings}"


def test_message_for_an_invalid_value_quotes_it_unless_it_is_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = problems(
        monkeypatch, PORT="high", LOG_FORMAT="sk_test_hunter1", OPS_TOKENS="hunter2", SWEEP_SECONDS="9" * 99
    )
    assert "PORT is not a whole number from 0 to 65535; the default is 8000 (now 'high', from the environment)" in wrong
    assert named(wrong) == {"PORT", "LOG_FORMAT", "OPS_TOKENS", "SWEEP_SECONDS"}
    assert "hunter" not in wrong and "9" * 61 not in wrong


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
    monkeypatch.setenv("OPS_TOKENS", f"ann: with:colons{LONG} ,bob:other{LONG}")
    monkeypatch.setenv("API_TOKENS", f"nameless{LONG}")
    settings = load_settings()
    assert {name: token.get_secret_value() for name, token in settings.ops_tokens.items()} == {
        "ann": f"with:colons{LONG}",
        "bob": f"other{LONG}",
    }
    assert settings.api_tokens == {"token": SecretStr(f"nameless{LONG}")}


@pytest.mark.parametrize(
    "tokens", ["nameless", "ann:", ":secret-1", "ann:secret-1,ann:secret-2", "a:secret-1,b:secret-1", "a:x,,b:y"]
)
def test_invalid_tokens_are_refused_and_not_quoted(monkeypatch: pytest.MonkeyPatch, tokens: str) -> None:
    problem = problems(monkeypatch, OPS_TOKENS=tokens)
    assert named(problem) == {"OPS_TOKENS"} and "secret-" not in problem


def test_repr_of_settings_has_no_token() -> None:
    text = repr(Settings(_env_file=None, ops_tokens=f"ann:secret-1-{LONG}", api_tokens=f"secret-2-{LONG}"))
    assert "secret-" not in text and "ann" in text


def test_role_mapped_twice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROLE_MAP", "owner=member,owner=admin")
    with pytest.raises(ConfigurationError, match="ROLE_MAP has the same slug twice"):
        load_settings()


# Each setting, however it is spelled

VALID = {
    "environment_name": "staging",
    "bind": "127.0.0.1",
    **dict.fromkeys(("port", "webhook_max_bytes"), "2000"),
    **dict.fromkeys(("listen_fds", "trusted_proxy_hops", "max_attempts", "batch_size", "hook_attempts"), "3"),
    **dict.fromkeys(("web_processes", "web_threads", "worker_processes", "webhook_tolerance_seconds"), "3"),
    **dict.fromkeys(("keep_payloads_days", "keep_events_days", "keep_changes_days", "erase_after_days"), "101"),
    **dict.fromkeys(("catch_up_seconds", "catch_up_lag_seconds", "gap_seconds", "resync_seconds"), "7.5"),
    **dict.fromkeys(("retention_seconds", "repair_seconds", "sweep_seconds", "hook_seconds"), "7.5"),
    **dict.fromkeys(("tail_seconds", "hold_back_seconds"), "7.5"),
    **dict.fromkeys(("replay_per_second", "first_backoff_seconds"), "7.5"),
    **dict.fromkeys(("allow_plain_http", "auto_join_existing", "revoke_sessions"), "true"),
    **dict.fromkeys(("otel_traces_sampler_arg", "workos_rate_share"), "0.25"),
    "database_url": "postgresql://ann:hunter2@host/name",
    "database_schema": "workos_sync",
    "redis_url": "rediss://:hunter2@host:6380/1?socket_timeout=3",
    "workos_webhook_secrets": f"whsec_{LONG}",
    "webhook_path_token": f"path.{LONG}",
    "webhook_allowed_ips": "3.217.146.166",
    "ops_tokens": f"ann:{LONG}",
    "api_tokens": LONG,
    "ops_read_only": "ann",
    "ops_allowed": "ann@acme.example",
    "ops_proxy_header": "X-Forwarded-Email",
    "ops_proxy_addresses": "192.0.2.0/24",
    "oidc_issuer": "https://auth.acme.example",
    "oidc_client_id": "client_of_pages",
    "oidc_client_secret": LONG,
    "oidc_claim": "role",
    "api_refresh_names": "token",
    "workos_api_key": f"sk_test_{LONG}",
    "workos_client_id": "client_01ABC",
    "workos_base_url": "https://api.workos.com",
    "role_map": "owner=admin",
    "auto_join": "off",
    "hooks": "crm=https://crm.example/hook",
    "hook_secrets": "crm:whsec_" + "c2VjcmV0" * 4,
    "log_format": "json",
    "sentry_dsn": f"https://{LONG}@sentry.acme.example/1",
    "otel_exporter_otlp_endpoint": "https://ann:hunter2@collector.acme.example:4318",
    "notify": "slack://a/b/c",
    "notify_secret": "whsec_" + "c2VjcmV0" * 4,
    "notify_remind_seconds": "7.5",
    "public_url": "https://sync.example.com",
}
"""A valid value of each setting that is not its default."""
TOGETHER = {
    **dict.fromkeys(("hooks", "hook_secrets"), ("hooks", "hook_secrets")),
    **dict.fromkeys(("workos_api_key", "workos_client_id"), ("workos_api_key", "workos_client_id")),
    **dict.fromkeys(OIDC := ("oidc_issuer", "oidc_client_id", "oidc_client_secret"), (*OIDC, "ops_allowed")),
    **dict.fromkeys(PROXY := ("ops_proxy_header", "ops_proxy_addresses"), (*PROXY, "ops_allowed")),
    "database_schema": ("database_url", "database_schema"),
    "ops_read_only": ("ops_tokens", "ops_read_only"),
    "api_refresh_names": ("api_tokens", "api_refresh_names"),
    "revoke_sessions": ("workos_api_key", "workos_client_id", "revoke_sessions"),
}
"""Settings that are valid only together."""
WRONG = {
    "wrong scheme": "ftp://host.example/x",
    "non-ASCII": "\u043a\u043b\u044e\u0447",
    "absurd number": "1e400",
    "great number": "999999999999",
    "infinite": "inf",
    "no number": "nan",
    "in quotation marks": '"1"',
    "not UTF-8": "1\udcff",
}
NEVER = {"in quotation marks", "not UTF-8"}
MAY_BE_TEXT = {"ops_allowed", "oidc_claim"}
MAY_BE_WORDS = {
    *("workos_api_key", "workos_client_id", "database_schema", "environment_name"),
    *("oidc_client_id", "oidc_client_secret", "ops_proxy_header"),
}
WORDS = {"1e400", "999999999999", "inf", "nan"}
"""They may be a client id, a key, a name or a schema."""


def surroundings(name: str) -> dict[str, str]:
    return {each: VALID[each] for each in TOGETHER.get(name, (name,))}


def set_all(monkeypatch: pytest.MonkeyPatch, given: dict[str, str]) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name.upper(), value)


def test_every_setting_has_an_example() -> None:
    assert set(VALID) == set(Settings.model_fields)


@pytest.mark.parametrize("name", VALID)
def test_surrounding_space_is_removed(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    given = surroundings(name)
    set_all(monkeypatch, given)
    expected = getattr(load_settings(), name)
    assert expected != Settings.model_fields[name].default
    for spelling in ("{}\n", "{}\r\n", " {} ", "\t{}", "\ufeff{}", "{}\u200b", "\u00a0{}"):
        monkeypatch.setenv(name.upper(), spelling.format(given[name]))
        assert getattr(load_settings(), name) == expected, ascii(spelling)


@pytest.mark.parametrize("name", sorted(VALID.keys() - RESTRICTIONS))
def test_blank_setting_counts_as_not_set(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    Path(".env").write_text(f"{name.upper()}=\n")
    for blank in ("", " ", "\n"):
        monkeypatch.setenv(name.upper(), blank)
        reading = read_settings()
        assert getattr(reading.settings, name) == Settings.model_fields[name].default
        assert reading.problems == [] and name not in reading.origins


@pytest.mark.parametrize("blank", ["", " \n"])
def test_empty_restriction_is_refused(monkeypatch: pytest.MonkeyPatch, blank: str) -> None:
    Path(".env").write_text(f"WEBHOOK_ALLOWED_IPS=\nWEBHOOK_PATH_TOKEN={LONG}\n")
    found = problems(monkeypatch, WEBHOOK_PATH_TOKEN=blank)
    assert named(found) == {"WEBHOOK_PATH_TOKEN", "WEBHOOK_ALLOWED_IPS"} and found.count("is set but empty") == 2


@pytest.mark.parametrize("name", VALID)
def test_value_of_another_kind_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    set_all(monkeypatch, surroundings(name))
    for kind, value in WRONG.items():
        if (name in MAY_BE_WORDS and value in WORDS) or (name in MAY_BE_TEXT and kind not in NEVER):
            continue
        if name == "notify" and kind == "wrong scheme":
            continue  # only Apprise knows the schemes of services
        monkeypatch.setenv(name.upper(), value)
        reading = read_settings()
        (problem,) = reading.problems
        assert problem.setting == name.upper() and problem.remedy, kind
        assert str(problem).isprintable() and "Input should" not in str(problem), kind
        assert name not in SECRETS or value not in str(problem), kind
        if name not in {"api_refresh_names", "ops_read_only"}:  # any word may be a name, but of no token
            assert getattr(reading.settings, name) == Settings.model_fields[name].default, kind


@pytest.mark.parametrize(
    "name", [name for name, field in Settings.model_fields.items() if field.annotation in {int, float}]
)
def test_every_number_has_bounds(name: str) -> None:
    low, high = bounds(name)
    assert 0 <= low <= Settings.model_fields[name].default <= high < 10**9


@pytest.mark.parametrize(
    ("name", "value", "saw"),
    [
        ("WEBHOOK_PATH_TOKEN", f"{LONG}/x+g=", "may contain only"),
        ("WEBHOOK_PATH_TOKEN", f"{LONG}?x", "may contain only"),
        ("WEBHOOK_PATH_TOKEN", "s3cret", "too short"),
        ("WORKOS_WEBHOOK_SECRETS", f"{LONG},short", "too short"),
        ("OPS_TOKENS", f"bob:{LONG},ann:b", "too short"),
        ("API_TOKENS", "c", "too short"),
        ("API_TOKENS", f"a b {LONG}", "has a space"),
        ("NOTIFY", "slack", "is not a URL in ASCII, the one at place 1; write slack://"),
        ("NOTIFY", f"slack://{LONG}, {LONG}", "is not a URL in ASCII, the one at place 1"),
        ("NOTIFY", f"slack://{LONG},mailto://a b", "the one at place 2"),
        ("NOTIFY", f"slack://{LONG},https://:7/{LONG}", "has an invalid https URL, the one at place 2"),
        ("NOTIFY", f"https://ops.example/{LONG},localhost", "has an invalid https URL, the one at place 1"),
        ("NOTIFY", f"slack://{LONG},slack://{LONG}", "has the same URL twice"),
        ("NOTIFY_SECRET", LONG, "is not a secret of Standard Webhooks; write whsec_"),
        ("PUBLIC_URL", "https://host/?x=1", "has a query"),
        ("HOOKS", "..=https://host/x", "has a name"),
        ("HOOKS", "crm=http://", "has no URL for crm"),
        ("HOOKS", "crm=https://host:99999/x", "has no URL for crm"),
        ("WORKOS_BASE_URL", "https://api.workos.com?x=1", "has a query"),
        ("REDIS_URL", "redis://host/0?foo=1", "options that cannot be used: foo"),
        ("REDIS_URL", "redis://host/0?decode_responses=True", "options that cannot be used: decode_responses"),
        ("REDIS_URL", "rediss://host/0?ssl_nonsense=1", "an option that redis-py does not accept"),
        ("REDIS_URL", "redis://host/0?socket_timeout=soon", "is not a Redis URL"),
        ("REDIS_URL", "redis://host:٦٣٧٩", "is not a Redis URL"),
        ("DATABASE_URL", "sqlite:///x.db?foo=1", "options that SQLite does not know: foo"),
        ("WEBHOOK_ALLOWED_IPS", "1.2.3.4/24", "has host bits set"),
    ],
)
def test_further_invalid_values(monkeypatch: pytest.MonkeyPatch, name: str, value: str, saw: str) -> None:
    found = problems(monkeypatch, **{name: value})
    assert found.startswith(name) and saw in found and LONG not in found


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WORKOS_BASE_URL", "http://far.example"),
        ("HOOKS", "crm=http://10.0.0.7/h"),
        ("HOOKS", "crm=HTTP://far.example/h"),
        ("NOTIFY", "slack://a/b/c,http://far.example/h"),
    ],
)
def test_plain_http_to_another_host_needs_a_setting(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv("HOOK_SECRETS", VALID["hook_secrets"] if name == "HOOKS" else "")
    monkeypatch.setenv("NOTIFY_SECRET", VALID["notify_secret"])
    found = problems(monkeypatch, **{name: value})
    assert named(found) == {name, "ALLOW_PLAIN_HTTP"}
    monkeypatch.setenv("ALLOW_PLAIN_HTTP", "true")
    reading = read_settings()
    assert reading.problems == [] and [warning.setting for warning in reading.warnings] == [name]


def test_targets_of_notifications_have_names_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    urls = ["mailto://ann:hunter2@mail.example?to=a@x.example,b@x.example", "slack://hunter2/b/c"]
    urls += ["slack://hunter2/b/d", "https://ann:hunter2@ops.example:8443/hunter2"]
    monkeypatch.setenv("NOTIFY", ", ".join(urls))
    found = problems(monkeypatch)
    assert (
        found.startswith("NOTIFY_SECRET is not set, and messages to ops.example:8443 need") and "hunter2" not in found
    )
    monkeypatch.setenv("NOTIFY_SECRET", VALID["notify_secret"])
    settings = load_settings()
    assert settings.notify_targets == dict(zip(["mailto", "slack", "slack 2", "ops.example:8443"], urls, strict=True))
    shown = {row["setting"]: row["value"] for row in read_settings().rows()}
    assert shown["NOTIFY"] == ["mailto://…", "slack://…", "slack://…", "https://ops.example:8443/…"]


def test_names_that_may_refresh_must_be_those_of_api_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_TOKENS", f"product:{LONG}")
    found = problems(monkeypatch, API_REFRESH_NAMES="product, crm,reports")
    assert found.startswith("API_REFRESH_NAMES has names that are not in API_TOKENS: crm, reports; ")


@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1:1", "127.8.9.10", "[::1]:1", "sandbox.localhost"])
def test_plain_http_to_this_machine_is_accepted(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("WORKOS_BASE_URL", f"http://{host}")
    reading = read_settings()
    assert (reading.problems, reading.warnings) == ([], [])


@pytest.mark.parametrize(
    ("raw", "normal"),
    [
        ("::ffff:3.217.146.166", "3.217.146.166/32"),
        ("::ffff:198.51.100.0/120", "198.51.100.0/24"),
        ("[2001:DB8::1]", "2001:db8::1/128"),
        (" 198.51.100.0/24 ", "198.51.100.0/24"),
        ("::/0", "::/0"),
    ],
)
def test_networks_have_one_spelling(monkeypatch: pytest.MonkeyPatch, raw: str, normal: str) -> None:
    monkeypatch.setenv("WEBHOOK_ALLOWED_IPS", raw)
    assert load_settings().webhook_allowed_ips == (normal,)


# .env


@pytest.mark.parametrize(
    "content",
    ["PORT=1\n".encode("utf-16"), "PORT=1\n".encode("utf-16-le"), "OPS_TOKENS=\u00e9:x\n".encode("latin-1")],
    ids=["UTF-16", "UTF-16 without a mark", "Latin-1"],
)
def test_env_file_that_is_not_utf8_is_named_with_all_other_problems(
    monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    Path(".env").write_bytes(content)
    found = problems(monkeypatch, "workos_webhook_secrets", PORT="high")
    assert found.startswith(".env is not UTF-8, but perhaps UTF-16; save it as UTF-8") and str(Path.cwd()) in found
    assert named(found) == {"PORT"}, "whether the secret is set is not known"


def test_env_file_may_begin_with_a_byte_order_mark() -> None:
    Path(".env").write_bytes("PORT=1111\r\n".encode("utf-8-sig"))
    assert load_settings().port == 1111


def test_origins(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("PORT=1111\nBATCH_SIZE=7\nWEB_THREADS=8\n")
    monkeypatch.setenv("BATCH_SIZE", "9")
    monkeypatch.setenv("WEB_THREADS", " ")
    reading = read_settings(port=3333, worker_processes=None)
    assert reading.origins == {"port": "option", "batch_size": "environment", "web_threads": ".env"}


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("OPS_TOKEN", "OPS_TOKENS"),
        ("WORKOS_WEBHOOK_SECRET", "WORKOS_WEBHOOK_SECRETS"),
        ("WEBHOOK_SECRET", "WORKOS_WEBHOOK_SECRETS"),
        ("WEBHOOK_ALLOWED_IP", "WEBHOOK_ALLOWED_IPS"),
        ("DATABASE_URI", "DATABASE_URL"),
        ("HOOK", "HOOKS"),
    ],
)
@pytest.mark.parametrize("put", [lambda m, n: m.setenv(n, "x"), lambda m, n: Path(".env").write_text(f"{n}=x\n")])
def test_unknown_name_that_resembles_a_setting_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, name: str, ours: str, put: Callable[[Any, str], object]
) -> None:
    put(monkeypatch, name)
    (warning,) = [each for each in read_settings().warnings if each.setting == name]
    assert ours in warning.remedy


@pytest.mark.parametrize(
    "name", ["LISTEN_PID", "LISTEN_FDNAMES", "PGPORT", "PATH", "HOME", "LANG", "WORKOS_COOKIE_PASSWORD", "TZ", "SORT"]
)
def test_other_names_cause_no_warning(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "x")
    assert name not in {warning.setting for warning in read_settings().warnings}


def test_standard_variables_of_opentelemetry_are_no_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    of_exporter = ("HEADERS", "PROTOCOL", "TIMEOUT", "TRACES_ENDPOINT", "COMPRESSION")
    others = ("SERVICE_NAME", "RESOURCE_ATTRIBUTES", "TRACES_EXPORTER", "TRACES_SAMPLER")
    for name in (*(f"EXPORTER_OTLP_{end}" for end in of_exporter), *others):
        monkeypatch.setenv(f"OTEL_{name}", "x")
    assert read_settings().warnings == []
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPONT", "x")
    assert [str(warning) for warning in read_settings().warnings] == [
        "OTEL_EXPORTER_OTLP_ENDPONT is not a setting; did you mean OTEL_EXPORTER_OTLP_ENDPOINT?"
    ]


def test_rows_mask_every_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, VALID)
    shown = {str(row["setting"]): row for row in read_settings().rows()}
    assert set(shown) == {name.upper() for name in VALID}
    assert LONG not in str(shown) and "hunter" not in str(shown) and "c2Vj" not in str(shown)
    assert {row["origin"] for row in shown.values()} == {"environment"}
    assert shown["WORKOS_API_KEY"]["value"] == "sk_test_\u2026(24 characters)"
    assert shown["OPS_TOKENS"]["value"] == {"ann": "\u2026(16 characters)"}
    assert shown["DATABASE_URL"]["value"] == "postgresql://ann:***@host/name"
    assert shown["REDIS_URL"]["value"] == "rediss://:***@host:6380/1?socket_timeout=3"
    assert masks.masked_url("sqlite:////x/y.db?mode=ro") == "sqlite:////x/y.db?mode=ro"
    assert masks.masked_url("postgresql://u:h/@nter@h/n?sslpassword=hunter") == "postgresql://u:***@h/n?sslpassword=***"
    assert shown["HOOKS"]["value"] == {"crm": "https://crm.example/\u2026"}
    assert shown["PORT"]["value"] == 2000
