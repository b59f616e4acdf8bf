"""Decides who may use the pages: people with a token, or signed in by an identity provider or a proxy."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from flask import request

from models.ip_addresses import ip_of, network_of
from worker.settings import Settings


class Operator(NamedTuple):
    """A person who may use the pages. `who` is their name in the audit."""

    who: str
    may_act: bool
    """Whether the person may act, and not only look."""


def by_session(settings: Settings, who: str, entries: Collection[str] | None) -> Operator | None:
    """Return the operator of a session; None if the settings no longer allow them.

    `entries` are those of OPS_ALLOWED that applied at the sign-in; None if the person signed in with a token.
    """
    if entries is None:
        return Operator(who, who not in settings.ops_read_only) if who in settings.ops_tokens else None
    return _allowed(settings, who, entries)


def by_claims(settings: Settings, claims: Mapping[str, Any]) -> tuple[str, list[str]] | None:
    """Return how the audit names a person with these claims of an ID token, and the entries of OPS_ALLOWED that apply.

    An address counts only if the claim `email_verified` is true (OpenID Connect Core 1.0, section 5.1). None: no entry
    applies.
    """
    email, groups = claims.get("email"), claims.get(settings.oidc_claim)
    verified = _spelled(email) if isinstance(email, str) and claims.get("email_verified") is True else None
    named = {group for group in (groups if isinstance(groups, list) else [groups]) if isinstance(group, str)}
    entries = [entry for entry in settings.ops_allowed if entry in named and "@" not in entry]
    entries += _addressed(settings, verified)
    return (verified or f"{claims['sub']}", entries) if entries else None


def by_proxy(settings: Settings) -> Operator | None:
    """Return the operator that a trusted proxy names in the request; None if there is none, or they are not allowed.

    Only the address of the connection itself counts, whatever X-Forwarded-For says.
    """
    if settings.ops_proxy_header is None:
        return None
    name = _spelled(request.headers.get(settings.ops_proxy_header, ""))
    connection = request.environ.get("werkzeug.proxy_fix.orig", request.environ)
    try:
        sender = ip_of(connection.get("REMOTE_ADDR") or "")
    except ValueError:  # a Unix socket
        return None
    if not name or not any(sender in network_of(network) for network in settings.ops_proxy_addresses):
        return None
    return _allowed(settings, name, _addressed(settings, name))


def _allowed(settings: Settings, who: str, entries: Collection[str]) -> Operator | None:
    """Return the operator to whom these entries of OPS_ALLOWED apply; None if the setting has none of them."""
    current = set(entries).intersection(settings.ops_allowed)
    return Operator(who, not current <= set(settings.ops_read_only)) if current else None


def _addressed(settings: Settings, address: str | None) -> list[str]:
    """Return the entries of OPS_ALLOWED that equal this address. Entries without `@` are groups."""
    return [entry for entry in settings.ops_allowed if "@" in entry and _spelled(entry) == address]


def _spelled(address: str) -> str:
    """Return an address with its ASCII letters in lower case. Other letters stay: `ß` and `ss` may be two people."""
    return address.strip().encode("utf-8", "replace").lower().decode()
