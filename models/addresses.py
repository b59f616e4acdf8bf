"""Normalizes e-mail addresses and domain names, so that they can be compared."""

import functools
import hashlib
from typing import NamedTuple

import idna


class Address(NamedTuple):
    """A normalized e-mail address: in lower case, with a normalized domain."""

    normalized: str
    domain: str

    @property
    def hash(self) -> str:
        """SHA-256 of `workos-sync:` and the normalized address, in hex. Only this is kept after an erasure."""
        return hashlib.sha256(f"workos-sync:{self.normalized}".encode()).hexdigest()


def normalize_address(email: str | None) -> Address | None:
    """Return the normalized address; None if `email` is not an address."""
    local, _, host = (email or "").rpartition("@")
    domain = normalize_domain(host)
    return Address(f"{local.lower()}@{domain}", domain) if local and domain else None


@functools.lru_cache(maxsize=4096)
def normalize_domain(domain: str | None) -> str | None:
    """Return `domain` in lower case, IDNA (UTS 46), without a trailing dot; None if it is not a domain name."""
    try:
        name = idna.encode((domain or "").rstrip("."), uts46=True, transitional=False).decode("ascii").lower()
    except (idna.IDNAError, UnicodeError):
        return None
    return name if "." in name else None
