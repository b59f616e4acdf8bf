"""We accept exactly the signatures that WorkOS's SDK accepts, and refuse those on which it crashes."""

import hashlib
import hmac
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from workos.webhooks import Webhooks

from tests.support import sign
from webhooks.signature import verify
from worker.errors import InvalidSignatureError

NOW_MS = 1_750_880_000_000
NOW = NOW_MS / 1000
BODY = b'{"id":"event_1","event":"user.created","data":{"name":"\xc3\xa9"}}'
SECRETS = ("whsec_one", "whsec_two", "\u00e9")
TOLERANCE = 180


def stamped(stamp: object, body: bytes = BODY, secret: str = SECRETS[0]) -> str:
    """A header with the right MAC for this stamp, even for an invalid stamp."""
    return f"t={stamp}, v1={hmac.new(secret.encode(), f'{stamp}.'.encode() + body, hashlib.sha256).hexdigest()}"


@pytest.fixture(autouse=True)
def _now(monkeypatch: pytest.MonkeyPatch) -> None:
    # Not freezegun: it searches all modules for each example.
    monkeypatch.setattr("workos.webhooks._resource.time", SimpleNamespace(time=lambda: NOW))


def ours(body: bytes, header: str | None, secrets: tuple[str, ...], tolerance: int = TOLERANCE) -> bool:
    try:
        verify(body, header, secrets, tolerance)
    except InvalidSignatureError:
        return False
    return True


def sdks(body: bytes, header: Any, secret: str, tolerance: int = TOLERANCE) -> bool:
    """The SDK's verdict; any exception counts as a refusal."""
    try:
        Webhooks.verify_header(
            None,  # type: ignore[arg-type]  # verification uses no client
            event_body=body,
            event_signature=header,
            secret=secret,
            tolerance=tolerance,
        )
    except (ValueError, TypeError, AttributeError, OverflowError):
        return False
    return True


# In WorkOS's documentation: "t=<milliseconds>, v1=<hex>"; the MAC over "<t>.<raw body>".
VECTORS = [
    pytest.param(stamped(NOW_MS), True, id="now"),
    pytest.param(stamped(NOW_MS - TOLERANCE * 1000), True, id="as old as allowed"),
    pytest.param(stamped(NOW_MS - TOLERANCE * 1000 - 1), False, id="a millisecond older"),
    pytest.param(stamped(NOW_MS + TOLERANCE * 1000), True, id="as far ahead as allowed"),
    pytest.param(stamped(NOW_MS + TOLERANCE * 1000 + 1), False, id="a millisecond further"),
    pytest.param(stamped(NOW_MS // 1000), False, id="seconds"),
    pytest.param(stamped(NOW_MS * 1000), False, id="microseconds"),
    pytest.param(stamped(f"{NOW_MS}.0"), False, id="a fraction"),
    pytest.param(stamped(f"-{NOW_MS}"), False, id="before all time"),
    pytest.param(stamped("9" * 400), False, id="beyond all numbers"),
    pytest.param(stamped("9" * 5000), False, id="more digits than Python reads"),
    pytest.param(stamped("NaN"), False, id="no number"),
    pytest.param(stamped(NOW_MS).upper(), False, id="in capitals"),
    pytest.param(stamped(NOW_MS).replace(", ", ","), False, id="no blank"),
    pytest.param(stamped(NOW_MS) + ", v1=" + "0" * 64, False, id="two MACs"),
    pytest.param(stamped(NOW_MS, secret="whsec_other"), False, id="another's"),
    pytest.param(stamped(NOW_MS, BODY + b"\n"), False, id="another body"),
    pytest.param(stamped(NOW_MS)[:-1], False, id="cut short"),
    pytest.param(stamped(NOW_MS)[:-1] + "\u00e9", False, id="not ASCII"),
    pytest.param("", False, id="empty"),
    pytest.param(", ", False, id="two empty parts"),
]


@pytest.mark.parametrize(("header", "holds"), VECTORS)
def test_each_vector_is_judged_as_the_sdk_judges_it(header: str, holds: bool) -> None:
    assert (ours(BODY, header, SECRETS[:1]), sdks(BODY, header, SECRETS[0])) == (holds, holds)


stamps = st.one_of(
    st.integers(-200_000, 200_000).map(lambda away: NOW_MS + away),
    st.sampled_from([NOW_MS + sign * TOLERANCE * 1000 + edge for sign in (-1, 1) for edge in (-1, 0, 1)]),
    st.integers(),
    st.text(max_size=5),
    st.sampled_from([NOW, NOW_MS // 1000, f" {NOW_MS}", f"+{NOW_MS}", f"{NOW_MS:_}", "\u0661\u0662"]),
)
bodies = st.binary(max_size=40) | st.text(max_size=20).map(lambda text: text.encode("utf-8", "replace"))
secrets = st.sampled_from(SECRETS) | st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=10)


@st.composite
def deliveries(draw: st.DrawFn) -> tuple[bytes, str, str]:
    """A body, a header that is right or nearly so, and the secret that is known here."""
    body, secret = draw(bodies), draw(secrets)
    stamp = draw(stamps)
    try:
        header = stamped(stamp, draw(st.just(body) | bodies), draw(st.just(secret) | secrets))
    except UnicodeEncodeError:
        header = f"t={stamp}, v1="
    cut, put = draw(st.integers(0, len(header))), draw(st.sampled_from(["", "", "", " ", ",", "\u00e9", "v1=", "0"]))
    return body, draw(st.just(header[:cut] + put + header[cut:]) | st.text(max_size=20)), secret


@pytest.mark.long
@given(deliveries(), st.integers(0, 300))
@settings(deadline=None, max_examples=300)
def test_our_verdict_equals_the_sdks(delivery: tuple[bytes, str, str], tolerance: int) -> None:
    body, header, secret = delivery
    assert ours(body, header, (secret,), tolerance) is (bool(header) and sdks(body, header, secret, tolerance))


@given(st.lists(secrets, min_size=1, max_size=4), secrets)
@settings(deadline=None)
def test_any_of_several_secrets_is_accepted(known: list[str], used: str) -> None:
    assert ours(BODY, stamped(NOW_MS, secret=used), tuple(known)) is (used in known)


def test_signatures_that_crash_the_sdk_are_refused() -> None:
    for header in (stamped(NOW_MS)[:-1] + "\u00e9", "t=\ud800, v1=\ud800"):
        with pytest.raises(InvalidSignatureError):
            verify(BODY, header, SECRETS, TOLERANCE)
    assert sign(BODY, SECRETS[0], NOW) == stamped(NOW_MS), "the other tests sign in WorkOS's form"
