"""How the text of a setting is parsed and checked.

Every function raises `ValueError` with a message that continues the setting's name: what is wrong, then a semicolon and
the remedy. No message quotes a secret.
"""

import base64
import re
from collections.abc import Callable, Iterable
from ipaddress import ip_address
from urllib.parse import parse_qsl, urlsplit

from pydantic import BeforeValidator

from models.database import SCHEMA_NAME, database_url
from models.ip_addresses import network_of
from worker.decision.roles import DEFAULT_ROLE_MAP, LOCAL_ROLES
from worker.env.redis_keys import ENVIRONMENT_NAME

MIN_SECRET_LENGTH = 16
"""Characters of a token or webhook secret. WorkOS's own secrets are longer."""
SHORTEST_SECRET, LONGEST_SECRET = 24, 64
"""Bytes of a hook's secret (Standard Webhooks, section Symmetric signatures)."""
NEW_TOKEN = "to make one: openssl rand -hex 24"  # noqa: S105 - a command
PLAIN_REDIS = re.compile(r"rediss?://(:?[\w.~-]+(:[\w.~-]+)?@)?[A-Za-z0-9.-]+(:[0-9]{1,4})?(/[0-9]+)?")
"""A URL that needs no check by redis-py, whose import takes long."""
REDIS_OPTIONS = frozenset(("db", "username", "password", "client_name", "protocol", "max_connections", "timeout"))
"""Options that REDIS_URL may contain, besides `socket_...`, `ssl_...` and `health_check_interval`."""
STANDARD_SECRET = "write whsec_ and 24 to 64 bytes in base64"  # noqa: S105 - a remedy
NOTIFY_FORM = "write slack://..., mailto://... or https://host/path"
SQLITE_OPTIONS = frozenset(("uri", "mode", "cache", "immutable", "nolock", "vfs", "timeout"))


def parsed(parse: Callable[[str], object]) -> BeforeValidator:
    """Return a validator that parses text; other values come from Python and stay as they are."""
    return BeforeValidator(lambda raw: parse(raw) if isinstance(raw, str) else raw)


def split(raw: str) -> list[str]:
    """Parse `entry,...`."""
    entries = [entry.strip() for entry in raw.split(",")] if raw.strip() else []
    if not all(entries):
        raise ValueError("has an empty entry; separate entries with single commas")
    return entries


def _pairs(raw: str, separator: str, what: str = "name") -> dict[str, str]:
    parts = [entry.partition(separator) for entry in split(raw)]
    pairs = {name.strip(): value.strip() for name, _, value in parts}
    if len(pairs) < len(parts):
        raise ValueError(f"has the same {what} twice; each entry needs its own {what}")
    return pairs


def word(raw: str) -> str:
    """Check for visible ASCII characters only, as an HTTP header can hold."""
    if not re.fullmatch(r"[!-~]+", raw):
        raise ValueError("has a space, line break or non-ASCII character; copy it again")
    return raw


def key(raw: str) -> str:
    """Check a key, an id or a secret: no URL, and visible ASCII characters only."""
    if "://" in word(raw):
        raise ValueError("is a URL; use the key, id or secret itself")
    return raw


def header(raw: str) -> str:
    """Check the name of an HTTP header."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]*", raw):
        raise ValueError("is not the name of a header; write X-Forwarded-Email, for example")
    return raw


def _check_strength(secrets: Iterable[str], remedy: str) -> None:
    for secret in secrets:
        key(secret)
        if len(secret) < MIN_SECRET_LENGTH:
            raise ValueError(f"is too short to be secret; use at least {MIN_SECRET_LENGTH} characters, {remedy}")


def webhook_secrets(raw: str) -> list[str]:
    """Parse the signing secrets of the webhook endpoint."""
    secrets = split(raw)
    _check_strength(secrets, "as the signing secrets of WorkOS have")
    return secrets


def path_token(raw: str) -> str:
    """Check a token that is one segment of a URL's path, without percent-encoding."""
    if not re.fullmatch(r"[A-Za-z0-9._~-]+", raw):
        raise ValueError(f"may contain only letters, digits and the characters . _ ~ -; {NEW_TOKEN}")
    _check_strength([raw], NEW_TOKEN)
    return raw


def named_secrets(raw: str) -> dict[str, str]:
    """Parse `name:secret,...`."""
    if "://" in raw:
        raise ValueError("has a URL; write name:token")
    secrets = _pairs(raw, ":")
    if not all(name and name.isprintable() and secret for name, secret in secrets.items()):
        raise ValueError("has an entry without a name or token; write name:token")
    if len(set(secrets.values())) < len(secrets):
        raise ValueError("has the same token twice; each entry needs its own token")
    return secrets


def tokens(raw: str) -> dict[str, str]:
    """Parse the tokens of people or programs, `name:token,...`."""
    found = named_secrets(raw)
    _check_strength(found.values(), NEW_TOKEN)
    return found


def api_tokens(raw: str) -> dict[str, str]:
    """Parse tokens. One may omit its name and gets the name `token`."""
    return tokens(",".join(entry if ":" in entry else f"token:{entry}" for entry in split(raw)))


def http_url(raw: str) -> str:
    """Check an absolute URL of http or https. The scheme is returned in lower case."""
    try:
        parts = urlsplit(word(raw))
        if parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0:
            return parts.geturl()
    except ValueError:
        pass  # the same message
    raise ValueError("is not a URL; write https://host/path in ASCII, without spaces")


def scheme_of(url: str) -> str:
    """Return the scheme of a URL, in lower case."""
    return url.partition("://")[0].lower()


def is_web(url: str) -> bool:
    """Return whether a URL is of https or http."""
    return scheme_of(url) in {"https", "http"}


def dsn(raw: str) -> str:
    """Check a DSN of Sentry, which contains a key."""
    parts = urlsplit(http_url(raw))
    if not (parts.username and parts.path.strip("/")):
        raise ValueError("is not a DSN; copy it from the Sentry project's settings, Client keys")
    return raw


def _is_http_url(raw: str) -> bool:
    try:
        http_url(raw)
    except ValueError:
        return False
    return True


def is_plain_and_remote(url: str) -> bool:
    """Return whether `url` is http, and not to this machine: others on the way could read and change the messages."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    return parts.scheme == "http" and not (
        host in {"localhost", "::1"} or host.endswith(".localhost") or re.fullmatch(r"127(\.\d{1,3}){3}", host)
    )


def base_url(raw: str) -> str:
    """Check the URL that WorkOS's paths are appended to."""
    url = http_url(raw)
    if urlsplit(url).query or urlsplit(url).fragment:
        raise ValueError("has a query or fragment; write https://host")
    return url


def hooks(raw: str) -> dict[str, str]:
    """Parse `name=https://...,...`. `HOOKS` may still name Python functions: see `Settings.python_hooks`."""
    found = _pairs(raw, "=")
    for name, target in found.items():
        if not re.fullmatch(r"\w[\w.-]{0,63}", name, re.ASCII):
            raise ValueError("has a name that is not 1 to 64 letters, digits and _ . -; write name=https://...")
        if not re.fullmatch(r"[\w.]+:[\w.]+", target):
            try:
                found[name] = http_url(target)
            except ValueError:
                raise ValueError(f"has no URL for {name}; write name=https://...") from None
    return found


def notify(raw: str) -> list[str]:
    """Parse `scheme://...,...`. A comma separates two URLs only if a scheme follows: addresses may contain others."""
    urls = re.split(r",\s*(?=[A-Za-z][A-Za-z0-9+.-]*://)", raw)
    for number, url in enumerate(urls, start=1):
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*://[!-~]+", url):
            raise ValueError(f"has an entry that is not a URL in ASCII, the one at place {number}; {NOTIFY_FORM}")
        if is_web(url) and ("," in url or not _is_http_url(url)):  # a comma is a slip between two entries
            raise ValueError(f"has an invalid {scheme_of(url)} URL, the one at place {number}; {NOTIFY_FORM}")
    if len(set(urls)) < len(urls):
        raise ValueError("has the same URL twice; remove one")
    return urls


def role_map(raw: str) -> dict[str, str]:
    """Parse `slug=role,...`, and add it to the default map."""
    roles = _pairs(raw, "=", "slug")
    if wrong := [slug for slug, role in roles.items() if not slug or role not in LOCAL_ROLES]:
        known = " or ".join(sorted(LOCAL_ROLES))
        slugs = ", ".join(filter(None, wrong)) or "a slug"
        raise ValueError(f"does not map {slugs} to a local role; write slug=role, where role is {known}")
    return DEFAULT_ROLE_MAP | roles


def database(raw: str) -> str:
    """Check the URL of a database, and on SQLite its options too. Nothing connects."""
    url = database_url(raw)
    if url.get_backend_name() == "sqlite" and (unknown := sorted(url.query.keys() - SQLITE_OPTIONS)):
        raise ValueError(f"has options that SQLite does not know: {', '.join(unknown)}; remove them")
    return raw


def environment_name(raw: str) -> str:
    """Check the name of an environment."""
    if not ENVIRONMENT_NAME.fullmatch(raw):
        raise ValueError("is not a name; write up to 32 lower-case letters, digits and hyphens, such as staging")
    return raw


def schema(raw: str) -> str:
    """Return the name of a PostgreSQL schema."""
    if not SCHEMA_NAME.fullmatch(raw):
        raise ValueError("is not a schema name; use lower-case letters, digits and underscores")
    return raw


def redis(raw: str) -> str:
    """Check the URL of a Redis, and its options. Nothing connects."""
    if PLAIN_REDIS.fullmatch(raw):
        return raw
    from redis import connection  # noqa: PLC0415 - takes a quarter of a second, and most commands need no Redis

    try:
        connection.parse_url(raw)  # type: ignore[no-untyped-call]  # redis-py has no types for it
        names = {name for name, _ in parse_qsl(urlsplit(raw).query, keep_blank_values=True)}
    except ValueError:
        # The original message may quote a password.
        raise ValueError("is not a Redis URL; write redis://host:6379/0, rediss://... or unix:///path") from None
    named = r"ssl_\w+|socket_\w+|health_check_interval"
    if unknown := sorted(name for name in names - REDIS_OPTIONS if not re.fullmatch(named, name)):
        raise ValueError(f"has options that cannot be used: {', '.join(unknown)}; remove them")
    try:
        connection.ConnectionPool.from_url(raw).make_connection()
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"has an option that redis-py does not accept, among {', '.join(sorted(names))}") from None
    return raw


def address(raw: str) -> str:
    """Check an IP address of this machine, to listen on."""
    try:
        return str(ip_address(raw))
    except ValueError:
        raise ValueError("is not an IP address; write 127.0.0.1, 0.0.0.0 or ::1, and the port in PORT") from None


def network(raw: str) -> str:
    """Check an address or network, and return it in its normal form: an IPv4-mapped one becomes IPv4."""
    try:
        return str(network_of(raw))
    except ValueError as error:
        raise ValueError(f"has an entry that is not an address or network: {error}; write 192.0.2.0/24") from None


def is_hook_secret(secret: str) -> bool:
    """Return whether a secret is valid in Standard Webhooks: `whsec_`, then 24 to 64 bytes in base64."""
    raw = secret.removeprefix("whsec_")
    try:
        return SHORTEST_SECRET <= len(base64.b64decode(raw + "=" * (-len(raw) % 4), validate=True)) <= LONGEST_SECRET
    except ValueError:
        return False


def hook_secret(raw: str) -> str:
    """Check a secret of Standard Webhooks."""
    if not is_hook_secret(raw):
        raise ValueError(f"is not a secret of Standard Webhooks; {STANDARD_SECRET}")
    return raw
