"""Normalizes e-mail addresses and domain names: the only notion of "the same address" and "the same domain".

Case, an internationalized domain or its `xn--` form, a trailing dot and surrounding spaces make no difference.
"""

import functools
import hashlib
from typing import NamedTuple

import idna

DOTS = ".\u3002\uff0e\uff61"
"""The characters that separate labels of a domain name (UTS 46)."""


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
    local, _, host = (email or "").strip().rpartition("@")
    domain = normalize_domain(host)
    return Address(f"{local.lower()}@{domain}", domain) if local and domain else None


def comparable(email: str) -> str:
    """Return a form of `email` that is equal for all spellings of an address. Other text is in lower case."""
    address = normalize_address(email)
    return address.normalized if address else email.strip().lower()


@functools.lru_cache(maxsize=4096)
def normalize_domain(domain: str | None) -> str | None:
    """Return `domain` in lower case, IDNA (UTS 46), without a trailing dot; None if it is not a domain name."""
    try:
        name = idna.encode((domain or "").rstrip(DOTS), uts46=True, transitional=False).decode("ascii").lower()
    except (idna.IDNAError, UnicodeError):
        return None
    return name if "." in name else None
