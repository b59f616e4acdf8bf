"""The identity provider of the pages: the extra that it needs, and what its discovery document says.

The document is defined in OpenID Connect Discovery 1.0, section 4.
"""

import json
import time
from http import HTTPStatus
from importlib.util import find_spec

import httpx2

from worker.errors import ConfigurationError

READ_SECONDS = 3.0
"""Time limit of each step of reading the document, and of the whole."""
MAX_BYTES = 65_536
NEEDED = ("issuer", "authorization_endpoint", "token_endpoint", "jwks_uri")
REACH = "check OIDC_ISSUER, and that this machine reaches the provider"
CORRECT = "set OIDC_ISSUER to the issuer's URL, exactly as its discovery document names it"


def require_installed() -> None:
    """Raise `ConfigurationError` if the extra `oidc` is not installed."""
    if missing := [name for name in ("authlib", "requests") if find_spec(name) is None]:
        raise ConfigurationError(f"OIDC_ISSUER needs {' and '.join(missing)}; pip install 'workos-sync[oidc]'")


def discovery_url(issuer: str) -> str:
    """Return the address of an issuer's discovery document."""
    return f"{issuer.rstrip('/')}/.well-known/openid-configuration"


def problem_of(issuer: str) -> tuple[str, str] | None:
    """Read the discovery document of an issuer; return what is wrong and the remedy, or None."""
    try:
        status, body = _read(discovery_url(issuer))
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as error:
        return f"{issuer} does not answer: {type(error).__name__}", REACH
    if status != HTTPStatus.OK:
        return f"{discovery_url(issuer)} answers {status}", CORRECT
    try:
        document = json.loads(body)
        lacking = [name for name in NEEDED if not isinstance(document.get(name), str)]
    except (ValueError, RecursionError, AttributeError):
        return f"{discovery_url(issuer)} is no discovery document", CORRECT
    if lacking:
        return f"its discovery document lacks {', '.join(lacking)}", CORRECT
    if document["issuer"] != issuer:  # ID tokens name the issuer in the same way, and would be refused
        return f"{issuer} calls itself {document['issuer']!r}", CORRECT
    return None


def _read(url: str) -> tuple[int, bytes]:
    """Return the status and the body of a document, of which the rest is left out if it is too long or too slow."""
    ends, body = time.monotonic() + READ_SECONDS, b""
    with httpx2.stream("GET", url, timeout=READ_SECONDS, follow_redirects=True) as answer:
        for part in answer.iter_bytes():
            body += part
            if len(body) > MAX_BYTES or time.monotonic() > ends:
                break
        return answer.status_code, body
