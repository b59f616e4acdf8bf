"""Named tokens, compared in constant time."""

import hmac
from collections.abc import Mapping

from pydantic import SecretStr


def token_name(token: str, known: Mapping[str, SecretStr]) -> str | None:
    """Return the name of a token, or None if it is unknown.

    Compares with every known token, so the time does not reveal which one matched.
    """
    found = None
    for name, secret in known.items():
        if hmac.compare_digest(token.encode("utf-8", "replace"), secret.get_secret_value().encode()):
            found = name
    return found
