"""Settings, read from the environment and `.env`. All are checked together, and all problems are reported at once."""

import base64
import ipaddress
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict
from redis.connection import parse_url

from models.database import SCHEMA_NAME, database_url
from models.tables import AutoJoinMode
from worker.decision.roles import DEFAULT_ROLE_MAP, LOCAL_ROLES
from worker.errors import ConfigurationError

SHORTEST_SECRET, LONGEST_SECRET = 24, 64
"""Bytes of a hook's secret (Standard Webhooks, section Symmetric signatures)."""
DEFAULT_DATABASE_URL = "sqlite:///.workos-sync/mirror.db"


def _parsed(parse: Callable[[str], object]) -> BeforeValidator:
    """Return a validator that parses text; other values come from Python and stay as they are."""
    return BeforeValidator(lambda raw: parse(raw) if isinstance(raw, str) else raw)


def _split(raw: str) -> list[str]:
    entries = [entry.strip() for entry in raw.split(",")] if raw.strip() else []
    if not all(entries):
        raise ValueError("has an empty entry")
    return entries


def _pairs(raw: str, separator: str, what: str = "name") -> dict[str, str]:
    parts = [entry.partition(separator) for entry in _split(raw)]
    pairs = {name.strip(): value.strip() for name, _, value in parts}
    if len(pairs) < len(parts):
        raise ValueError(f"has the same {what} twice; each entry needs its own {what}")
    return pairs


def _tokens(raw: str) -> dict[str, str]:
    """Parse `name:token,...`."""
    tokens = _pairs(raw, ":")
    if not all(name and token for name, token in tokens.items()):
        raise ValueError("has an entry without a name or token; write name:token")
    if len(set(tokens.values())) < len(tokens):
        raise ValueError("has the same token twice; each entry needs its own token")
    return tokens


def _api_tokens(raw: str) -> dict[str, str]:
    """Parse tokens. One may omit its name and gets the name `token`."""
    return _tokens(",".join(entry if ":" in entry else f"token:{entry}" for entry in _split(raw)))


def _hooks(raw: str) -> dict[str, str]:
    """Parse `name=https://...,...`. `HOOKS` may still name Python functions: see `python_hooks`."""
    hooks = _pairs(raw, "=")
    if wrong := [name or target for name, target in hooks.items() if not name or ":" not in target]:
        raise ValueError(f"has no URL for {', '.join(wrong)}; write name=https://...")
    return hooks


def _role_map(raw: str) -> dict[str, str]:
    """Parse `slug=role,...`, and add it to the default map."""
    roles = _pairs(raw, "=", "slug")
    if wrong := [slug for slug, role in roles.items() if not slug or role not in LOCAL_ROLES]:
        known = " or ".join(sorted(LOCAL_ROLES))
        slugs = ", ".join(filter(None, wrong)) or "a slug"
        raise ValueError(f"does not map {slugs} to a local role; write slug=role, where role is {known}")
    return DEFAULT_ROLE_MAP | roles


def _database(raw: str) -> str:
    database_url(raw)
    return raw


def _schema(raw: str) -> str:
    if not SCHEMA_NAME.fullmatch(raw):
        raise ValueError("is not a schema name; use lower-case letters, digits and underscores")
    return raw


def _redis(raw: str) -> str:
    try:
        parse_url(raw)  # type: ignore[no-untyped-call]  # redis-py has no types for it
    except ValueError:
        # The original message may quote a password.
        raise ValueError("is not a Redis URL; write redis://host:6379/0, rediss://... or unix:///path") from None
    return raw


def _address(raw: str) -> str:
    return str(ipaddress.ip_network(raw))


class Settings(BaseSettings):
    """All settings. docs/reference.md describes each. `repr` and `str` contain no secrets."""

    model_config = SettingsConfigDict(
        env_file=".env", enable_decoding=False, extra="ignore", hide_input_in_errors=True, frozen=True
    )

    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    listen_fds: Annotated[int, Field(ge=0)] = 0
    database_url: Annotated[str, AfterValidator(_database), Field(repr=False)] = DEFAULT_DATABASE_URL
    database_schema: Annotated[str, AfterValidator(_schema)] | None = None
    redis_url: Annotated[Annotated[str, AfterValidator(_redis)] | None, Field(repr=False)] = None
    workos_webhook_secrets: Annotated[tuple[SecretStr, ...], _parsed(_split)] = ()
    webhook_tolerance_seconds: Annotated[int, Field(ge=1)] = 180
    webhook_max_bytes: Annotated[int, Field(ge=1024)] = 1024 * 1024
    webhook_path_token: SecretStr | None = None
    webhook_allowed_ips: Annotated[tuple[Annotated[str, AfterValidator(_address)], ...], _parsed(_split)] = ()
    trusted_proxy_hops: Annotated[int, Field(ge=0, le=10)] = 0
    ops_tokens: Annotated[dict[str, SecretStr], _parsed(_tokens)] = {}
    api_tokens: Annotated[dict[str, SecretStr], _parsed(_api_tokens)] = {}
    workos_api_key: SecretStr | None = None
    workos_client_id: str | None = None
    workos_base_url: str | None = None
    workos_rate_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    catch_up_seconds: Annotated[float, Field(gt=0)] = 300.0
    catch_up_lag_seconds: Annotated[float, Field(gt=0)] = 60.0
    gap_seconds: Annotated[float, Field(gt=0)] = 600.0
    resync_seconds: Annotated[float, Field(gt=0)] = 24 * 3600.0
    retention_seconds: Annotated[float, Field(gt=0)] = 24 * 3600.0
    keep_payloads_days: Annotated[int, Field(ge=1)] = 30
    keep_events_days: Annotated[int, Field(ge=100)] = 100
    keep_changes_days: Annotated[int, Field(ge=1)] = 365
    erase_after_days: Annotated[int, Field(ge=0)] = 30
    repair_seconds: Annotated[float, Field(gt=0)] = 5.0
    role_map: Annotated[dict[str, str], _parsed(_role_map)] = DEFAULT_ROLE_MAP
    web_processes: Annotated[int, Field(ge=1)] = 2
    web_threads: Annotated[int, Field(ge=1)] = 32
    worker_processes: Annotated[int, Field(ge=1)] = 2
    sweep_seconds: Annotated[float, Field(gt=0)] = 5.0
    batch_size: Annotated[int, Field(ge=1, le=5000)] = 1000
    max_attempts: Annotated[int, Field(ge=1)] = 10
    auto_join: AutoJoinMode = AutoJoinMode.MIRROR
    auto_join_existing: bool = False
    hooks: Annotated[dict[str, str], _parsed(_hooks)] = {}
    hook_secrets: Annotated[dict[str, SecretStr], _parsed(_tokens)] = {}
    hook_seconds: Annotated[float, Field(gt=0, le=60)] = 10.0
    hook_attempts: Annotated[int, Field(ge=1)] = 12
    replay_per_second: Annotated[float, Field(gt=0)] = 200.0
    first_backoff_seconds: Annotated[float, Field(gt=0)] = 1.0
    log_format: Literal["json", "console"] | None = None

    @property
    def repairs(self) -> bool:
        """Whether the WorkOS API can be called, as catch-up, resync and confirmed reads need."""
        return bool(self.workos_api_key and self.workos_client_id)

    @property
    def http_hooks(self) -> dict[str, str]:
        """The URLs of the hooks, by name."""
        return {name: url for name, url in self.hooks.items() if url.startswith(("https://", "http://"))}

    @property
    def python_hooks(self) -> list[str]:
        """Names of hooks that are Python functions. Release 2.0 no longer calls them, and reports them as a warning."""
        return sorted(self.hooks.keys() - self.http_hooks.keys())


REMEDIES = {
    "workos_api_key": "use the API key of the WorkOS environment, from its dashboard",
    "workos_client_id": "use the client id of the same WorkOS environment",
    "workos_webhook_secrets": "use the webhook endpoint's signing secret; separate several with commas",
}


def load_settings(*required: str, **given: int | None) -> Settings:
    """Return the settings, of which `required` must be set. Those `given` and not None override the environment.

    Raises:
        ConfigurationError: some settings are invalid or missing. The message names all of them, without their values.
    """
    values: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    problems: list[str] = []
    wrong: set[str] = set()
    try:
        settings = Settings(**values)
    except ValidationError as error:
        for problem in error.errors(include_input=False, include_url=False, include_context=False):
            name = str(problem["loc"][0])
            problems.append(f"{name.upper()} {problem['msg'].removeprefix('Value error, ')}")
            wrong.add(name)
            values[name] = Settings.model_fields[name].default
        settings = Settings(**values)  # so that missing settings are reported too
    if settings.database_schema and "database_url" not in wrong and settings.database_url.startswith("sqlite"):
        problems.append("DATABASE_SCHEMA is set, but SQLite has no schemas: unset it, or use PostgreSQL")
    if not {"hooks", "hook_secrets"} & wrong:
        problems += _without_secret(settings)
    problems += [
        f"{name.upper()} is not set: {REMEDIES[name]}"
        for name in dict.fromkeys([*required, *_other_half(settings)])
        if name not in wrong and not getattr(settings, name)
    ]
    if problems:
        raise ConfigurationError("; ".join(problems))
    return settings


def _other_half(settings: Settings) -> tuple[str, ...]:
    """Return both settings that calls to the WorkOS API need, if one of them is set or provisioning needs the API."""
    halves = settings.workos_api_key or settings.workos_client_id or settings.auto_join is AutoJoinMode.PROVISION
    return ("workos_api_key", "workos_client_id") if halves else ()


def _without_secret(settings: Settings) -> list[str]:
    """Return the problems with the secrets of the hooks. Each HTTP hook needs its own secret to sign with."""
    problems = []
    for name in settings.http_hooks:
        secret = settings.hook_secrets.get(name)
        if secret is None:
            problems.append(f"HOOK_SECRETS has no secret for the hook {name}; write {name}:whsec_...")
        elif not _usable(secret.get_secret_value()):
            problems.append(f"HOOK_SECRETS has an invalid secret for {name}; write whsec_ and 24 to 64 bytes in base64")
    if unknown := sorted(settings.hook_secrets.keys() - settings.hooks.keys()):
        problems.append(f"HOOK_SECRETS names hooks that are not in HOOKS: {', '.join(unknown)}")
    return problems


def _usable(secret: str) -> bool:
    """Return whether a secret is valid in Standard Webhooks: `whsec_`, then 24 to 64 bytes in base64."""
    raw = secret.removeprefix("whsec_")
    try:
        return SHORTEST_SECRET <= len(base64.b64decode(raw + "=" * (-len(raw) % 4), validate=True)) <= LONGEST_SECRET
    except ValueError:
        return False
