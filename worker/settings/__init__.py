"""Settings, read from the environment and `.env`. All are checked together, and all problems are reported at once."""

from typing import Annotated, Literal, NamedTuple
from urllib.parse import urlsplit

from annotated_types import Ge, Le
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError
from pydantic_core import ErrorDetails

from models.tables import AutoJoinMode
from worker.decision.roles import DEFAULT_ROLE_MAP
from worker.env import sources
from worker.env.sources import Given
from worker.errors import ConfigurationError
from worker.settings import masks, values
from worker.settings.values import parsed

DEFAULT_DATABASE_URL = "sqlite:///.workos-sync/mirror.db"

Interval = Annotated[float, Field(ge=0.01, le=86_400)]
"""Seconds between two runs of a frequent task: at most a day."""
LongInterval = Annotated[float, Field(ge=0.01, le=2_592_000)]
"""Seconds between two runs of a rare task: at most 30 days."""
Days = Annotated[int, Field(ge=1, le=36_500)]
"""At most a century, so that a time that many days ago can be computed."""
Processes = Annotated[int, Field(ge=1, le=256)]
Attempts = Annotated[int, Field(ge=1, le=1_000)]


class Settings(BaseModel):
    """All settings. docs/reference.md describes each. `repr` and `str` contain no secrets.

    Reads nothing: `load_settings` reads the environment and `.env`.
    """

    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True, frozen=True, allow_inf_nan=False)

    environment_name: Annotated[str, parsed(values.environment_name)] | None = None
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    bind: Annotated[str, parsed(values.address)] = "0.0.0.0"  # noqa: S104 - containers and proxies need it
    listen_fds: Annotated[int, Field(ge=0, le=1024)] = 0
    database_url: Annotated[str, AfterValidator(values.database), Field(repr=False)] = DEFAULT_DATABASE_URL
    database_schema: Annotated[str, parsed(values.schema)] | None = None
    redis_url: Annotated[Annotated[str, AfterValidator(values.redis)] | None, Field(repr=False)] = None
    workos_webhook_secrets: Annotated[tuple[SecretStr, ...], parsed(values.webhook_secrets)] = ()
    webhook_tolerance_seconds: Annotated[int, Field(ge=1, le=86_400)] = 180
    webhook_max_bytes: Annotated[int, Field(ge=1024, le=64 * 1024 * 1024)] = 1024 * 1024
    webhook_path_token: Annotated[SecretStr | None, parsed(values.path_token)] = None
    webhook_allowed_ips: Annotated[
        tuple[Annotated[str, AfterValidator(values.network)], ...], parsed(values.split)
    ] = ()
    trusted_proxy_hops: Annotated[int, Field(ge=0, le=10)] = 0
    ops_tokens: Annotated[dict[str, SecretStr], parsed(values.tokens)] = {}
    ops_allowed: Annotated[tuple[str, ...], parsed(values.split)] = ()
    ops_read_only: Annotated[tuple[str, ...], parsed(values.split)] = ()
    ops_proxy_header: Annotated[str, parsed(values.header)] | None = None
    ops_proxy_addresses: Annotated[
        tuple[Annotated[str, AfterValidator(values.network)], ...], parsed(values.split)
    ] = ()
    oidc_issuer: Annotated[str, parsed(values.base_url)] | None = None
    oidc_client_id: Annotated[str, parsed(values.key)] | None = None
    oidc_client_secret: Annotated[SecretStr, parsed(values.key)] | None = None
    oidc_claim: Annotated[str, parsed(values.word)] = "groups"
    api_tokens: Annotated[dict[str, SecretStr], parsed(values.api_tokens)] = {}
    api_refresh_names: Annotated[tuple[str, ...], parsed(values.split)] = ()
    workos_api_key: Annotated[SecretStr | None, parsed(values.key)] = None
    workos_client_id: Annotated[str | None, parsed(values.key)] = None
    workos_base_url: Annotated[str | None, parsed(values.base_url)] = None
    allow_plain_http: bool = False
    workos_rate_share: Annotated[float, Field(ge=0.01, le=1)] = 0.5
    catch_up_seconds: Interval = 300.0
    catch_up_lag_seconds: Interval = 60.0
    tail_seconds: Interval = 5.0
    hold_back_seconds: Interval = 15.0
    gap_seconds: Interval = 600.0
    resync_seconds: LongInterval = 24 * 3600.0
    retention_seconds: LongInterval = 24 * 3600.0
    keep_payloads_days: Days = 30
    keep_events_days: Annotated[int, Field(ge=100, le=36_500)] = 100
    keep_changes_days: Days = 365
    erase_after_days: Annotated[int, Field(ge=0, le=36_500)] = 30
    repair_seconds: Interval = 5.0
    role_map: Annotated[dict[str, str], parsed(values.role_map)] = DEFAULT_ROLE_MAP
    web_processes: Processes = 2
    web_threads: Annotated[int, Field(ge=1, le=1_000)] = 32
    worker_processes: Processes = 2
    sweep_seconds: Interval = 5.0
    batch_size: Annotated[int, Field(ge=1, le=5000)] = 1000
    max_attempts: Attempts = 10
    auto_join: AutoJoinMode = AutoJoinMode.MIRROR
    auto_join_existing: bool = False
    revoke_sessions: bool = False
    hooks: Annotated[dict[str, str], parsed(values.hooks)] = {}
    hook_secrets: Annotated[dict[str, SecretStr], parsed(values.named_secrets)] = {}
    hook_seconds: Annotated[float, Field(ge=0.01, le=60)] = 10.0
    hook_attempts: Attempts = 12
    notify: Annotated[tuple[SecretStr, ...], parsed(values.notify)] = ()
    notify_secret: Annotated[SecretStr | None, parsed(values.hook_secret)] = None
    notify_remind_seconds: LongInterval = 24 * 3600.0
    public_url: Annotated[str | None, parsed(values.base_url)] = None
    replay_per_second: Annotated[float, Field(ge=0.1, le=100_000)] = 200.0
    first_backoff_seconds: Annotated[float, Field(ge=0.001, le=3_600)] = 1.0
    sentry_dsn: Annotated[SecretStr | None, parsed(values.dsn)] = None
    otel_exporter_otlp_endpoint: Annotated[Annotated[str | None, parsed(values.base_url)], Field(repr=False)] = None
    otel_traces_sampler_arg: Annotated[float, Field(ge=0, le=1)] = 0.01
    log_format: Literal["json", "console"] | None = None

    @property
    def repairs(self) -> bool:
        """Whether the WorkOS API can be called, as catch-up, resync and confirmed reads need."""
        return bool(self.workos_api_key and self.workos_client_id)

    @property
    def has_pages(self) -> bool:
        """Whether anybody can use the pages of operators."""
        return bool(self.ops_tokens or self.oidc_issuer or self.ops_proxy_header)

    @property
    def http_hooks(self) -> dict[str, str]:
        """The URLs of the hooks, by name."""
        return {name: url for name, url in self.hooks.items() if url.startswith(("https://", "http://"))}

    @property
    def notify_targets(self) -> dict[str, str]:
        """The URLs in `NOTIFY`, which are secret, by a name that is not: the host of an https URL, or the scheme."""
        found: dict[str, str] = {}
        for url in (secret.get_secret_value() for secret in self.notify):
            base = urlsplit(url).netloc.rpartition("@")[2] if values.is_web(url) else values.scheme_of(url)
            number = sum(name.partition(" ")[0] == base for name in found) + 1
            found[f"{base} {number}" if number > 1 else base] = url
        return found

    @property
    def plain_http(self) -> dict[str, str]:
        """The names of settings with an `http://` URL of another host, and what uses it."""
        hooks = sorted(name for name, url in self.http_hooks.items() if values.is_plain_and_remote(url))
        uses = {
            "WORKOS_BASE_URL": (self.workos_base_url, "the WorkOS API"),
            "OIDC_ISSUER": (self.oidc_issuer, "sign-in"),
            "SENTRY_DSN": (self.sentry_dsn.get_secret_value() if self.sentry_dsn else None, "error reports"),
            "OTEL_EXPORTER_OTLP_ENDPOINT": (self.otel_exporter_otlp_endpoint, "traces"),
        }
        plain = {name: use for name, (url, use) in uses.items() if values.is_plain_and_remote(url or "")}
        notified = [name for name, url in self.notify_targets.items() if values.is_plain_and_remote(url)]
        lists = {"HOOKS": ", ".join(hooks), "NOTIFY": ", ".join(notified)}
        return plain | {name: named for name, named in lists.items() if named}

    @property
    def python_hooks(self) -> list[str]:
        """Names of hooks that are Python functions. Release 2.0 no longer calls them, and reports them as a problem."""
        return sorted(self.hooks.keys() - self.http_hooks.keys())


FIELDS = Settings.model_fields
SECRETS = frozenset(
    (
        *("workos_api_key", "workos_webhook_secrets", "webhook_path_token", "ops_tokens", "api_tokens", "hook_secrets"),
        *("notify", "notify_secret", "oidc_client_secret", "sentry_dsn"),
    )
)
RESTRICTIONS = {
    "webhook_path_token": "set a token, or remove the setting to use /webhooks/workos",
    "webhook_allowed_ips": "name networks, or remove the setting to allow all",
}
"""Settings that keep strangers out. If one is given but empty, its value was lost, so it does not count as not set."""
REMEDIES = {
    "workos_api_key": "use the API key of the WorkOS environment, from its dashboard",
    "workos_client_id": "use the client id of the same WorkOS environment",
    "oidc_issuer": "use the issuer's URL, as its discovery document names it",
    "oidc_client_id": "use the client id that the identity provider gave to these pages",
    "oidc_client_secret": "use the client's secret",
    "ops_allowed": "name the addresses or groups that may use the pages",
    "ops_proxy_header": "name the header in which the proxy sends the person's address",
    "ops_proxy_addresses": "name the addresses or networks of the proxy",
    "workos_webhook_secrets": "use the webhook endpoint's signing secret; separate several with commas",
}
HTTPS = "use https://"
ORIGINS = {"environment": "the environment", "option": "an option"}
"""How a sentence names the origins of values; `.env` is named so."""


class Problem(NamedTuple):
    """A problem with a setting, and the remedy. `setting` is its name, or `.env`. No secret is quoted."""

    setting: str
    saw: str
    remedy: str

    def __str__(self) -> str:
        """Return one line."""
        return f"{self.setting} {self.saw}; {self.remedy}"


class Reading(NamedTuple):
    """The settings, where each was found, and what is wrong with them."""

    settings: Settings
    """Invalid settings have their defaults."""
    origins: dict[str, str]
    """`option`, `environment` or `.env`, by field. Other settings have their defaults."""
    problems: list[Problem]
    unknown: frozenset[str]
    """Names in the environment and `.env` that are not settings, in lower case."""

    @property
    def warnings(self) -> list[Problem]:
        """Possible mistakes: unknown names that resemble a setting, and messages that are not encrypted."""
        alike = sources.lookalikes(self.unknown, FIELDS.keys())
        return [
            Problem(name.upper(), "is not a setting", f"did you mean {' or '.join(map(str.upper, settings))}?")
            for name, settings in alike.items()
        ] + [Problem(*problem[:2], HTTPS) for problem in _unencrypted(self.settings) if self.settings.allow_plain_http]

    @property
    def message(self) -> str:
        """All problems in one line."""
        return ". ".join(map(str, self.problems))

    def rows(self) -> list[dict[str, object]]:
        """Return a row for each setting: its name, value and origin. Secrets are masked."""
        return [
            {
                "setting": name.upper(),
                "value": masks.masked_value(name, getattr(self.settings, name)),
                "origin": self.origins.get(name, "default"),
            }
            for name in FIELDS
        ]


def load_settings(*required: str, **given: int | str | None) -> Settings:
    """Return the settings, of which `required` must be set. Those `given` and not None override the environment.

    Raises:
        ConfigurationError: some settings are invalid or missing. The message names all of them, and masks secrets.
    """
    reading = read_settings(*required, **given)
    if reading.problems:
        raise ConfigurationError(reading.message)
    return reading.settings


def read_settings(*required: str, **given: int | str | None) -> Reading:
    """Read and check all settings. `required` and `given` are those of `load_settings`. Nothing is raised."""
    found, problems = _collect()
    texts = {name: value for name, value in found.items() if name in FIELDS and value.text}
    texts |= {name: Given(str(value), "option") for name, value in given.items() if value is not None}
    problems += [
        Problem(name.upper(), "is set but empty", remedy)
        for name, remedy in RESTRICTIONS.items()
        if name in found and not found[name].text
    ]
    settings, invalid = _validated(texts)
    problems += invalid
    wrong = {problem.setting.lower() for problem in problems}
    problems += _contradictions(settings, wrong)
    if ".env" not in wrong:  # otherwise it may set them
        problems += _missing(settings, required, wrong)
    order = [".env", *map(str.upper, FIELDS)]
    problems.sort(key=lambda problem: order.index(problem.setting))
    return Reading(
        settings, {name: text.origin for name, text in texts.items()}, problems, frozenset(found.keys() - FIELDS.keys())
    )


def _collect() -> tuple[dict[str, Given], list[Problem]]:
    """Return the environment and `.env`, which the environment overrides unless its value is blank.

    A blank value of a setting in `RESTRICTIONS` is kept, because it is an error.
    """
    file: dict[str, Given] = {}
    problems: list[Problem] = []
    try:
        file = sources.env_file()
    except ValueError as error:
        saw, _, remedy = str(error).partition("; ")
        problems.append(Problem(".env", saw, f"{remedy} ({sources.ENV_FILE.resolve()})"))
    environment = sources.environment()
    return file | {n: value for n, value in environment.items() if value.text or n in RESTRICTIONS}, problems


def _validated(texts: dict[str, Given]) -> tuple[Settings, list[Problem]]:
    """Return the settings, with defaults in place of invalid values, and the problems of those values."""
    problems = [_problem(name.upper(), saw, value) for name, value in texts.items() if (saw := _spoiled(value.text))]
    usable = {name: value.text for name, value in texts.items() if not _spoiled(value.text)}
    try:
        return Settings(**usable), problems
    except ValidationError as error:
        for found in error.errors(include_input=False, include_url=False):
            name = str(found["loc"][0])
            if usable.pop(name, None) is not None:  # one problem of each setting is enough
                problems.append(_problem(name.upper(), _description(name, found), texts[name]))
    return Settings(**usable), problems


def _spoiled(text: str) -> str | None:
    """Return a problem that the text of any setting may have; None if it has none."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        return "is not UTF-8; write it again"
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return "is in quotation marks; remove them"
    return None


def _description(name: str, found: ErrorDetails) -> str:
    """Return the problem and the remedy of an invalid value, separated by a semicolon."""
    field, context = FIELDS[name], found.get("ctx", {})
    if found["type"] == "value_error":
        return found["msg"].removeprefix("Value error, ")
    if field.annotation in {int, float}:
        low, high = bounds(name)
        whole = "whole " if field.annotation is int else ""
        return f"is not a {whole}number from {low} to {high}; the default is {str(field.default).removesuffix('.0')}"
    if "expected" in context:
        return f"is not {context['expected']}; write one of them"
    return "is not true or false; write one of them"


def bounds(name: str) -> tuple[float, float]:
    """Return the lowest and highest value of a number."""
    found = [limit for limit in FIELDS[name].metadata if isinstance(limit, Ge | Le)]
    (low,), (high,) = ([getattr(limit, end) for limit in found if hasattr(limit, end)] for end in ("ge", "le"))
    return low, high


def _problem(setting: str, text: str, value: Given | None = None) -> Problem:
    saw, _, remedy = text.partition("; ")
    name = setting.lower()
    quoted = masks.quoted(name, value.text, secret=name in SECRETS) if value else ""
    current = f" (now {quoted}, from {ORIGINS.get(value.origin, value.origin)})" if value else ""
    return Problem(setting, saw, f"{remedy or 'correct it'}{current}")


def _missing(settings: Settings, required: tuple[str, ...], wrong: set[str]) -> list[Problem]:
    return [
        Problem(name.upper(), "is not set", REMEDIES[name])
        for name in dict.fromkeys([*required, *_needed_together(settings)])
        if name not in wrong and not getattr(settings, name)
    ]


def _needed_together(settings: Settings) -> tuple[str, ...]:
    """Return the settings that must be set because of others: all that a use of WorkOS, OIDC or a proxy needs."""
    given = settings.workos_api_key or settings.workos_client_id
    writes = settings.auto_join is AutoJoinMode.PROVISION or settings.revoke_sessions
    together = ("workos_api_key", "workos_client_id") if given or writes else ()
    for group in (("oidc_issuer", "oidc_client_id", "oidc_client_secret"), ("ops_proxy_header", "ops_proxy_addresses")):
        if any(getattr(settings, name) for name in group):
            together += (*group, "ops_allowed")
    return together


def _contradictions(settings: Settings, wrong: set[str]) -> list[Problem]:
    """Return the problems of settings that are valid alone; those that name a setting in `wrong` are left out."""
    problems = []
    if not {"hooks", "hook_secrets"} & wrong:
        problems += [_problem("HOOK_SECRETS", text) for text in _without_secret(settings)]
    if not {"notify", "notify_secret"} & wrong:
        signed = [name for name, url in settings.notify_targets.items() if values.is_web(url)]
        if signed and settings.notify_secret is None:
            text = f"is not set, and messages to {', '.join(signed)} need a signature; {values.STANDARD_SECRET}"
            problems.append(_problem("NOTIFY_SECRET", text))
    for name, places in (("ops_read_only", ("ops_tokens", "ops_allowed")), ("api_refresh_names", ("api_tokens",))):
        unknown = sorted(set(getattr(settings, name)).difference(*(getattr(settings, place) for place in places)))
        if unknown and not {name, *places} & wrong:
            there = " or ".join(map(str.upper, places))
            text = f"has names that are not in {there}: {', '.join(unknown)}; add them there, or remove them"
            problems.append(_problem(name.upper(), text))
    schema = settings.database_schema and not {"database_schema", "database_url"} & wrong
    if schema and settings.database_url.startswith("sqlite"):
        problems.append(_problem("DATABASE_SCHEMA", "cannot be used with SQLite; remove it, or use PostgreSQL"))
    if not settings.allow_plain_http and "allow_plain_http" not in wrong:
        problems += _unencrypted(settings)
    return problems


def _unencrypted(settings: Settings) -> list[Problem]:
    """Return a problem for each setting that sends something to another host over http."""
    remedy = f"{HTTPS}, or set ALLOW_PLAIN_HTTP=true"
    return [
        Problem(name, f"uses http:// to another host for {what}: others can read and change what is sent", remedy)
        for name, what in settings.plain_http.items()
    ]


def _without_secret(settings: Settings) -> list[str]:
    """Return the problems with the secrets of the hooks. Each HTTP hook needs its own secret to sign with."""
    problems = []
    for name in settings.http_hooks:
        secret = settings.hook_secrets.get(name)
        if secret is None:
            problems.append(f"has no secret for the hook {name}; write {name}:whsec_...")
        elif not values.is_hook_secret(secret.get_secret_value()):
            problems.append(f"has an invalid secret for {name}; {values.STANDARD_SECRET}")
    if unknown := sorted(settings.hook_secrets.keys() - settings.hooks.keys()):
        problems.append(f"names hooks that are not in HOOKS: {', '.join(unknown)}; add them to HOOKS, or remove them")
    return problems
