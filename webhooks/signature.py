"""Verifies the signature of a delivery with the configured secrets."""

import math
from collections.abc import Sequence

from workos.webhooks import Webhooks

from worker.errors import InvalidSignatureError

# `verify_header` does not use its client, so None takes the place of `self`.
_verify_header = Webhooks.verify_header


def verify(body: bytes, header: str | None, secrets: Sequence[str], tolerance_seconds: int) -> int:
    """Return the index in `secrets` of the secret that signed `body`.

    Args:
        body: the raw bytes as received.
        header: the `WorkOS-Signature` header; None if absent.
        secrets: the endpoint's secrets; several during a rotation.
        tolerance_seconds: maximum difference between the header's timestamp and now, in either direction.

    Raises:
        InvalidSignatureError: with the reason `missing`, `mismatch` (no secret matches), or `time` (a secret matches,
            so WorkOS signed it, but the timestamp is outside the tolerance).
    """
    if not header:
        raise InvalidSignatureError("missing")
    for index, secret in enumerate(secrets):
        if _holds(body, header, secret, tolerance_seconds):
            return index
    # The time of a header that nobody with a secret has signed means nothing: anybody can write one.
    signed = any(_holds(body, header, secret, math.inf) for secret in secrets)
    raise InvalidSignatureError("time" if signed else "mismatch")


def _holds(body: bytes, header: str, secret: str, tolerance_seconds: float) -> bool:
    try:
        _verify_header(
            None,  # type: ignore[arg-type]  # see _verify_header
            event_body=body,
            event_signature=header,
            secret=secret,
            tolerance=tolerance_seconds,  # type: ignore[arg-type]  # it is only compared
        )
    except Exception:  # noqa: BLE001 - the SDK raises whatever int(), decode() and hmac raise
        return False
    return True
