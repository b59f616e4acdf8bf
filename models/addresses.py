"""How e-mail addresses and domain names are compared."""

import functools
import hashlib
from typing import NamedTuple

import idna


class Address(NamedTuple):
    """An e-mail address as addresses are compared: in lower case, its domain normalized."""

    normalized: str
    domain: str

    @property
    def hash(self) -> str:
        """SHA-256 of `workos-sync:` and the normalized address, in hex: what is kept of it after an erasure."""
        return hashlib.sha256(f"workos-sync:{self.normalized}".encode()).hexdigest()


def normalize_address(email: str | None) -> Address | None:
    """Return `email` for comparison; None if it is no address."""
    local, _, host = (email or "").rpartition("@")
    domain = normalize_domain(host)
    return Address(f"{local.lower()}@{domain}", domain) if local and domain else None


@functools.lru_cache(maxsize=4096)
def normalize_domain(domain: str | None) -> str | None:
    """Return `domain` in lower case, IDNA (UTS 46), without trailing dot; None if it is no domain name."""
    try:
        name = idna.encode((domain or "").rstrip("."), uts46=True, transitional=False).decode("ascii").lower()
    except (idna.IDNAError, UnicodeError):
        return None
    return name if "." in name else None
