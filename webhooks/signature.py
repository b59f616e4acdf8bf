"""Whether a delivery is WorkOS's own: its signature over the raw bytes, by any of the configured secrets."""

from collections.abc import Sequence

from workos.webhooks import Webhooks


class InvalidSignatureError(Exception):
    """The signature does not hold. `reason` is one of a few words, fit for a metric."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


# Verification needs no client: it uses none of its connection.
_verify_header = Webhooks.verify_header


def verify(body: bytes, header: str | None, secrets: Sequence[str], tolerance_seconds: int) -> int:
    """Return the place in `secrets` of the one that signed `body`.

    The MAC is over the raw bytes as received (WorkOS, "Sync data with webhooks"); `t` counts milliseconds.

    Args:
        body: the raw request body.
        header: the `WorkOS-Signature` header; None if there was none.
        secrets: the endpoint's secrets, during a rotation several.
        tolerance_seconds: how far the signature's time may be from now, either way.

    Raises:
        RefusedError: `missing`, `time` or `mismatch`.
    """
    if not header:
        raise InvalidSignatureError("missing")
    reason = "mismatch"
    for place, secret in enumerate(secrets):
        try:
            _verify_header(
                None,  # type: ignore[arg-type]  # see _verify_header
                event_body=body,
                event_signature=header,
                secret=secret,
                tolerance=tolerance_seconds,
            )
        except Exception as error:  # noqa: BLE001 - the SDK raises what int(), decode() and hmac raise; all mean no
            if str(error) == "Timestamp outside the tolerance zone":
                reason = "time"
        else:
            return place
    raise InvalidSignatureError(reason)
