"""How values are shown to people: secrets are replaced by their length."""

import re
from collections.abc import Mapping
from enum import Enum
from urllib.parse import urlsplit

from pydantic import SecretStr

from worker.settings.values import is_web, scheme_of

URLS = frozenset(("database_url", "oidc_issuer", "otel_exporter_otlp_endpoint", "redis_url", "workos_base_url"))
MAX_SHOWN = 60
"""Characters of an invalid value that a message quotes."""


def masked(secret: str) -> str:
    """Return a secret's length and public prefix, such as `sk_…(32 characters)`."""
    prefix = re.match(r"sk_(test_|live_)?|whsec_", secret)
    return f"{prefix[0] if prefix else ''}…({len(secret)} characters)"


def masked_url(url: str) -> str:
    """Return a URL without its password, and without options that may be secret."""
    bare = re.sub(r"(?<=://)([^:/@?#]*):.*@", r"\1:***@", url)  # a password may contain / and @
    return re.sub(r"([?&][^=&]*(?:pass|secret|token|key)[^=&]*)=[^&]*", r"\1=***", bare, flags=re.IGNORECASE)


def masked_value(name: str, value: object) -> object:
    """Return a valid value of the setting `name` as JSON, in which no secret can be read."""
    if isinstance(value, SecretStr):
        return (_target if name == "notify" else masked)(value.get_secret_value())
    if isinstance(value, tuple):
        return [masked_value(name, each) for each in value]
    if name == "hooks" and isinstance(value, dict):
        return {hook: _origin(url) for hook, url in value.items()}
    if isinstance(value, Mapping):
        return {key: masked_value(name, each) for key, each in value.items()}
    if name in URLS and isinstance(value, str):
        return masked_url(value)
    return value.value if isinstance(value, Enum) else value


def _target(url: str) -> str:
    """Return what may be shown of a URL in `NOTIFY`. In those of Apprise, even the host may be a secret."""
    return _origin(url) if is_web(url) else f"{scheme_of(url)}://…"


def _origin(url: str) -> str:
    """Return the scheme and host of a hook's URL: its path may be what keeps strangers out."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}/…" if parts.netloc else url


def quoted(name: str, raw: str, *, secret: bool) -> str:
    """Return an invalid value of the setting `name` for a message; only its length if it may hold a secret."""
    if secret or name in {*URLS, "hooks"} or re.search(r"sk_|whsec_", raw):
        return "1 character" if len(raw) == 1 else f"{len(raw)} characters"
    return ascii(raw if len(raw) <= MAX_SHOWN else f"{raw[:MAX_SHOWN]}...")
