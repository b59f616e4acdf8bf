"""A request ends at the same byte as for gunicorn's own parser, in any pieces."""

from collections.abc import Iterable

import pytest
from gunicorn.config import Config
from gunicorn.http import RequestParser
from hypothesis import given, settings
from hypothesis import strategies as st

from webhooks.server.request_reader import CONTINUE, FREE_FRAMING, MAX_HEAD, RequestReader
from worker.errors import RefusedRequestError

MAX_BODY = 4096
names = st.sampled_from(["X-Long", "WorkOS-Signature", "X-Content-Length", "X-Transfer-Encoding"])
headers = st.dictionaries(names, st.text("abc, :=;10", max_size=30), max_size=4)


def head(fields: Iterable[tuple[str, str]]) -> bytes:
    lines = "".join(f"{name}: {value.strip()}\r\n" for name, value in fields)
    return f"POST /webhooks/workos HTTP/1.1\r\n{lines}".encode()


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    start, body = head(draw(headers).items()), draw(st.binary(max_size=200))
    match draw(st.sampled_from(["none", "length", "chunks"])):
        case "none":
            return start + b"\r\n"
        case "length":
            name = draw(st.sampled_from([b"Content-Length", b"content-length", b"CONTENT-LENGTH"]))
            return start + name + b": %d\r\n\r\n" % len(body) + body
        case _:
            cuts = sorted(draw(st.lists(st.integers(0, len(body)), max_size=3)))
            parts = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]
            extension = draw(st.sampled_from([b"", b";a=b"]))
            chunks = b"".join(b"%x%s\r\n%s\r\n" % (len(part), extension, part) for part in parts if part)
            trailer = draw(st.sampled_from([b"", b"X-Late: 1\r\n"]))
            return start + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n" + trailer + b"\r\n"


def pieces(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts} - {0, len(data)})
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


@given(request=requests(), cuts=st.lists(st.integers(0, 10_000), max_size=8), more=st.binary(max_size=20))
@settings(deadline=None)
def test_a_request_is_complete_with_its_last_byte(request: bytes, cuts: list[int], more: bytes) -> None:
    incoming = RequestReader(MAX_BODY)
    *first, last = pieces(request, cuts)
    assert [incoming.add(piece) for piece in first] == [False] * len(first)
    assert incoming.add(last + more)
    original, handed_on = (
        next(RequestParser(Config(), iter([whole]), ("127.0.0.1", 1)))
        for whole in (request, incoming.head + incoming.body)
    )
    assert original.body.read() == incoming.body == handed_on.body.read(), "gunicorn's parser finds the same body"
    kept = [field for field in original.headers if field[0] not in {"TRANSFER-ENCODING", "CONTENT-LENGTH"}]
    assert [field for field in handed_on.headers if field[0] != "CONTENT-LENGTH"] == kept
    assert incoming.rest == more
    for length in range(len(request)):
        assert not RequestReader(MAX_BODY).add(request[:length])


@given(st.binary(max_size=300), st.integers(1, 5))
@settings(deadline=None)
def test_random_bytes_are_refused_or_wait_for_more(garbage: bytes, step: int) -> None:
    incoming = RequestReader(MAX_BODY)
    for at in range(0, len(garbage), step):
        try:
            if incoming.add(garbage[at : at + step]):
                break
        except RefusedRequestError:
            break


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (head([("Content-Length", str(MAX_BODY))]) + b"\r\n", "413"),
        (head([("Content-Length", "9" * 17)]) + b"\r\n", "413"),
        (head([("Transfer-Encoding", "chunked")]) + b"\r\nffffffffffff\r\n", "413"),
        (head([("Transfer-Encoding", "chunked")]) + b"\r\n" + b"80\r\n%s\r\n" % (b"x" * 128) * 33, "413"),
        (head([("Transfer-Encoding", "chunked")]) + b"\r\n" + b"1\r\nx\r\n" * FREE_FRAMING, "400"),
        (head([("Transfer-Encoding", "chunked")]) + b"\r\n1;" + b"x" * 2000, "400"),
        (head([("Transfer-Encoding", "chunked")]) + b"\r\n0\r\nX: " + b"x" * (MAX_HEAD + 10), "431"),
        (head([]) + b"X: " + b"x" * MAX_HEAD, "431"),
    ],
)
def test_a_request_that_is_too_large_is_refused_before_its_end(sent: bytes, status: str) -> None:
    with pytest.raises(RefusedRequestError) as refused:
        RequestReader(MAX_BODY).add(sent)
    assert refused.value.status.startswith(f"{status} ")


@pytest.mark.parametrize("framing", [("Content-Length", "5"), ("Transfer-Encoding", "chunked")])
def test_expect_100_continue_is_answered_once(framing: tuple[str, str]) -> None:
    incoming = RequestReader(MAX_BODY)
    assert not incoming.add(head([framing, ("Expect", "100-continue")]) + b"\r\n")
    assert incoming.reply == CONTINUE
    assert not incoming.add(b"5")
    assert incoming.reply == b""


@pytest.mark.parametrize("size", ["-5", "x", "", "0x5", "+5", "5_0", " 5", "5 ", "5 ann@acme.example", "5\n", "\uff15"])
def test_a_chunk_size_that_is_not_hexadecimal_is_refused(size: str) -> None:
    with pytest.raises(RefusedRequestError) as refused:
        RequestReader(MAX_BODY).add(head([("Transfer-Encoding", "chunked")]) + f"\r\n{size}\r\nabcde\r\n".encode())
    assert refused.value.status == "400 Bad Request"
