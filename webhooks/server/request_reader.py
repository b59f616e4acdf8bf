"""Finds the end of an HTTP/1.1 request while it arrives (RFC 9112).

Parsing is strict: an ambiguous request is rejected, because a proxy in front might read it differently (request
smuggling).
"""

import re
from collections.abc import Generator

from worker.errors import RefusedRequestError

MAX_HEAD = 65_536
MAX_CHUNK_LINE = 1_024
FREE_FRAMING = 4_096
DATA_PER_FRAMING = 8
"""After `FREE_FRAMING` bytes of framing, each further one must come with this many bytes of chunk data."""
PART_BYTES = 65_536
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

BAD_REQUEST = "400 Bad Request"
TOO_LARGE = "413 Content Too Large"
BUSY = "503 Service Unavailable"
HEAD_TOO_LARGE = "431 Request Header Fields Too Large"

_FIELD = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t -~\x80-\xff]*\r\n"
_HEAD = re.compile(rb"(?:\r\n)?[!-~]+ [!-~]+ HTTP/1\.([01])\r\n(?:%s)*" % _FIELD)
_TRAILERS = re.compile(rb"(?:%s)*" % _FIELD)
_FRAMING = re.compile(rb"\r\n(content-length|transfer-encoding):([^\r]*)", re.IGNORECASE)
_EXPECTS = re.compile(rb"\r\nexpect:[ \t]*100-continue", re.IGNORECASE)
_LENGTH = re.compile(rb"\d{1,18}")
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:[ \t]*;[\t -~\x80-\xff]*)?\r\n")
_BARE_LF = re.compile(rb"(?<!\r)\n")

Steps = Generator[bytes, None, None]
"""Yields whenever more data is needed. Each value is sent to the client."""
Search = Generator[bytes, None, int]
"""Like `Steps`, and returns an index into the data."""


class RequestReader:
    """Reads one request piece by piece, in time linear in its length.

    Args:
        limit: a body of this many bytes or more is too large.

    When the request is complete, `head` is its head, with `Content-Length` in place of `Transfer-Encoding`; `body` is
    its body, with chunks joined and trailers dropped; `rest` is the data after it. Each byte is held once.
    """

    def __init__(self, limit: int) -> None:
        self.head = b""
        self.body = b""
        self.rest = b""
        self.started = False
        """Whether any data has arrived."""
        self._data = bytearray()
        self._parts: list[bytearray] = []
        self._taken = 0
        self._limit = limit
        self._steps = self._read()
        self.reply = next(self._steps)

    @property
    def held(self) -> int:
        """Number of bytes that are held of this request, and of what came after it."""
        return len(self.head) + len(self.body) + len(self.rest) + len(self._data) + self._taken

    def add(self, data: bytes) -> bool:
        """Add received data; return whether the request is complete. If not, send `reply` to the client.

        Raises:
            RefusedRequestError: the request is malformed or too large. Raised as early as possible.
        """
        self.started = True
        self._data += data
        try:
            self.reply = next(self._steps)
        except StopIteration:
            return True
        return False

    def free(self) -> None:
        """Free all bytes at once. The reader and its generator refer to each other, so they themselves stay a while."""
        self._parts.clear()
        self._data.clear()
        self.head = self.body = self.rest = b""

    def _read(self) -> Steps:
        yield b""
        head_end = yield from self._blank_line(0)
        head = bytes(self._data[:head_end])
        match = _HEAD.fullmatch(head, 0, head_end - 2)
        if match is None:
            raise RefusedRequestError(BAD_REQUEST, "head")
        is_1_1 = match[1] == b"1"
        length = self._length(head, is_1_1=is_1_1)
        if length != 0 and is_1_1 and len(self._data) == head_end and _EXPECTS.search(head):
            yield CONTINUE
        del self._data[:head_end]
        yield from self._chunks() if length is None else self._take(length)
        self.body, self._taken = b"".join(self._parts), 0
        self._parts.clear()
        self.head = _FRAMING.sub(b"\r\nContent-Length: %d" % len(self.body), head)
        self.rest = bytes(self._data)
        self._data.clear()

    def _take(self, length: int) -> Steps:
        """Move the next bytes to the body as they arrive.

        Small parts of equal size, because the heap would be fragmented by many bodies that grow at the same time.
        """
        while length:
            while not self._data:
                yield b""
            if not self._parts or len(self._parts[-1]) == PART_BYTES:
                self._parts.append(bytearray())
            taken = min(length, len(self._data), PART_BYTES - len(self._parts[-1]))
            self._parts[-1] += self._data[:taken]
            del self._data[:taken]
            self._taken += taken
            length -= taken

    def _length(self, head: bytes, *, is_1_1: bool) -> int | None:
        """Return the length of the body; None if it is chunked."""
        match [(name.lower(), value.strip(b" \t").lower()) for name, value in _FRAMING.findall(head)]:
            case []:
                return 0
            case [(b"content-length", value)] if _LENGTH.fullmatch(value):
                if int(value) >= self._limit:
                    raise RefusedRequestError(TOO_LARGE, "body")
                return int(value)
            case [(b"transfer-encoding", b"chunked")] if is_1_1:
                return None
            case _:
                raise RefusedRequestError(BAD_REQUEST, "length")

    def _chunks(self) -> Steps:
        """Move the chunks to the body."""
        framing = 0
        while True:
            while (line := self._data.find(b"\n", 0, MAX_CHUNK_LINE) + 1) == 0:
                if len(self._data) >= MAX_CHUNK_LINE:
                    raise RefusedRequestError(BAD_REQUEST, "chunk size")
                yield b""
            size = _CHUNK_LINE.fullmatch(self._data, 0, line)
            if size is None:
                raise RefusedRequestError(BAD_REQUEST, "chunk size")
            length = int(size[1], 16)
            if length == 0:
                del self._data[: (yield from self._trailers(line))]
                return
            if self._taken + length >= self._limit:
                raise RefusedRequestError(TOO_LARGE, "body")
            framing += line + 2
            if framing > FREE_FRAMING + (self._taken + length) // DATA_PER_FRAMING:
                raise RefusedRequestError(BAD_REQUEST, "tiny chunks")
            del self._data[:line]
            yield from self._take(length)
            while (closing := self._data[:2]) != b"\r\n":
                if not b"\r\n".startswith(closing):
                    raise RefusedRequestError(BAD_REQUEST, "chunk end")
                yield b""
            del self._data[:2]

    def _trailers(self, start: int) -> Search:
        end = yield from self._blank_line(start - 2)
        if not _TRAILERS.fullmatch(self._data, start, end - 2):
            raise RefusedRequestError(BAD_REQUEST, "trailers")
        return end

    def _blank_line(self, start: int) -> Search:
        """Wait for an empty line at `start` or later; return the index after it."""
        searched = start
        while (found := self._data.find(b"\r\n\r\n", searched)) < 0:
            if _BARE_LF.search(self._data, searched):
                raise RefusedRequestError(BAD_REQUEST, "line end")
            if len(self._data) - start > MAX_HEAD:
                raise RefusedRequestError(HEAD_TOO_LARGE, "head")
            searched = max(start, len(self._data) - 3)
            yield b""
        return found + 4
