"""Reads one request as it comes in: the part of HTTP/1.1 that says where it ends (RFC 9112), read strictly.

What could be read in two ways is refused, so that a proxy in front never takes the request for another.
"""

import re
from collections.abc import Generator

MAX_HEAD = 65_536
MAX_CHUNK_LINE = 1_024
FREE_FRAMING = 4_096
DATA_PER_FRAMING = 8
"""Beyond `FREE_FRAMING` bytes, chunks carry at least this many bytes of data for each byte of framing."""
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

BAD_REQUEST = "400 Bad Request"
TOO_LARGE = "413 Content Too Large"
HEAD_TOO_LARGE = "431 Request Header Fields Too Large"

_FIELD = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t -~\x80-\xff]*\r\n"
_HEAD = re.compile(rb"(?:\r\n)?[!-~]+ [!-~]+ HTTP/1\.([01])\r\n(?:%s)*" % _FIELD)
_TRAILERS = re.compile(rb"(?:%s)*" % _FIELD)
_FRAMING = re.compile(rb"\r\n(content-length|transfer-encoding):([^\r]*)", re.IGNORECASE)
_EXPECTS = re.compile(rb"\r\nexpect:[ \t]*100-continue", re.IGNORECASE)
_LENGTH = re.compile(rb"\d{1,18}")
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:[ \t]*;[\t -~\x80-\xff]*)?\r\n")
_BARE_LF = re.compile(rb"(?<!\r)\n")

Reading = Generator[bytes, None, None]
"""Yields while more must come, each time with what to tell the sender."""
Searching = Generator[bytes, None, int]
"""As `Reading`; returns a place in the data."""


class RefusedRequestError(Exception):
    """The request is malformed or too large. `status` is the answer's status line, without version."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        """A constant, without anything of the request."""


class RequestReader:
    """One request as it comes in; takes time linear in its bytes.

    Args:
        most: a body of this many bytes is too large.

    Once the request is whole, `head` is its head, always with `Content-Length` in place of `Transfer-Encoding`; `body`
    is its body, chunks joined and trailers dropped; `rest` is what came after it.
    """

    def __init__(self, most: int) -> None:
        self.head = b""
        self.body = bytearray()
        self.rest = b""
        self.began = False
        """Whether any of it has come."""
        self._data = bytearray()
        self._most = most
        self._reading = self._read()
        self.reply = next(self._reading)

    def add(self, data: bytes) -> bool:
        """Take what came; return whether the request is whole. `reply` is what to tell the sender meanwhile.

        Raises:
            RefusedRequestError: malformed or too large; raised as soon as that is known.
        """
        self.began = True
        self._data += data
        try:
            self.reply = next(self._reading)
        except StopIteration:
            return True
        return False

    def _read(self) -> Reading:
        yield b""
        begin = yield from self._blank_line(0)
        head = bytes(self._data[:begin])
        told = _HEAD.fullmatch(head, 0, begin - 2)
        if told is None:
            raise RefusedRequestError(BAD_REQUEST, "head")
        newer = told[1] == b"1"
        length = self._length(head, newer=newer)
        if length != 0 and newer and len(self._data) == begin and _EXPECTS.search(head):
            yield CONTINUE
        if length is None:
            end = yield from self._chunks(begin)
        else:
            end = begin + length
            while len(self._data) < end:
                yield b""
            self.body = self._data[begin:end]
        self.head = _FRAMING.sub(b"\r\nContent-Length: %d" % len(self.body), head)
        self.rest = bytes(self._data[end:])
        self._data.clear()

    def _length(self, head: bytes, *, newer: bool) -> int | None:
        """Return the length of the body; None if it comes in chunks."""
        match [(name.lower(), value.strip(b" \t").lower()) for name, value in _FRAMING.findall(head)]:
            case []:
                return 0
            case [(b"content-length", value)] if _LENGTH.fullmatch(value):
                if int(value) >= self._most:
                    raise RefusedRequestError(TOO_LARGE, "body")
                return int(value)
            case [(b"transfer-encoding", b"chunked")] if newer:
                return None
            case _:
                raise RefusedRequestError(BAD_REQUEST, "length")

    def _chunks(self, at: int) -> Searching:
        """Join the chunks from `at`; return the place after them."""
        framing = 0
        while True:
            while (line := self._data.find(b"\n", at, at + MAX_CHUNK_LINE) + 1) == 0:
                if len(self._data) >= at + MAX_CHUNK_LINE:
                    raise RefusedRequestError(BAD_REQUEST, "chunk size")
                yield b""
            size = _CHUNK_LINE.fullmatch(self._data, at, line)
            if size is None:
                raise RefusedRequestError(BAD_REQUEST, "chunk size")
            length = int(size[1], 16)
            if length == 0:
                return (yield from self._trailers(line))
            if len(self.body) + length >= self._most:
                raise RefusedRequestError(TOO_LARGE, "body")
            framing += line - at + 2
            if framing > FREE_FRAMING + (len(self.body) + length) // DATA_PER_FRAMING:
                raise RefusedRequestError(BAD_REQUEST, "tiny chunks")
            end = line + length
            while (closing := self._data[end : end + 2]) != b"\r\n":
                if not b"\r\n".startswith(closing):
                    raise RefusedRequestError(BAD_REQUEST, "chunk end")
                yield b""
            self.body += self._data[line:end]
            at = end + 2

    def _trailers(self, begin: int) -> Searching:
        end = yield from self._blank_line(begin - 2)
        if not _TRAILERS.fullmatch(self._data, begin, end - 2):
            raise RefusedRequestError(BAD_REQUEST, "trailers")
        return end

    def _blank_line(self, start: int) -> Searching:
        """Wait for two line ends in a row at `start` or later; return the place after them."""
        looked = start
        while (found := self._data.find(b"\r\n\r\n", looked)) < 0:
            if _BARE_LF.search(self._data, looked):
                raise RefusedRequestError(BAD_REQUEST, "line end")
            if len(self._data) - start > MAX_HEAD:
                raise RefusedRequestError(HEAD_TOO_LARGE, "head")
            looked = max(start, len(self._data) - 3)
            yield b""
        return found + 4
