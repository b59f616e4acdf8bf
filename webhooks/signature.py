"""Verifies the signature of a delivery with the configured secrets."""

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
        InvalidSignatureError: no secret matches, or the timestamp is outside the tolerance.
    """
    if not header:
        raise InvalidSignatureError("missing")
    reason = "mismatch"
    for index, secret in enumerate(secrets):
        try:
            _verify_header(
                None,  # type: ignore[arg-type]  # see _verify_header
                event_body=body,
                event_signature=header,
                secret=secret,
                tolerance=tolerance_seconds,
            )
        except Exception as error:  # noqa: BLE001 - the SDK raises whatever int(), decode() and hmac raise
            if str(error) == "Timestamp outside the tolerance zone":
                reason = "time"
        else:
            return index
    raise InvalidSignatureError(reason)
