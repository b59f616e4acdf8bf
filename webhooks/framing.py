"""Where a request ends, told while it comes in: so much of HTTP/1.1 as that takes (RFC 9112, sections 6 and 7)."""

import re
from collections.abc import Generator

MOST_HEAD = 65_536
MOST_CHUNK_LINE = 1_024
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,18})[ \t]*(?=\r\n)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[^\r\n]*chunked", re.IGNORECASE)
_EXPECTS = re.compile(rb"\r\nexpect:[ \t]*100-continue", re.IGNORECASE)
_CHUNK_SIZE = re.compile(rb"[0-9a-f]{1,16}", re.IGNORECASE)

Waiting = Generator[bytes, None, int]
"""Yields while more must come, each time with what to tell the sender; returns a place in the data."""


class TooLargeError(Exception):
    """Head or body are larger than allowed. `status` is the answer's status line, without version."""

    def __init__(self, status: str) -> None:
        super().__init__(status)
        self.status = status


class Incoming:
    """One request as it comes in.

    What is malformed counts as whole: the parser after this one says so.

    Args:
        most: a body of so many bytes is too large.
    """

    def __init__(self, most: int) -> None:
        self.data = bytearray()
        self._most = most
        self._waiting = self._frame()
        self.reply = next(self._waiting)

    def add(self, data: bytes) -> bool:
        """Take what came; return whether the request is whole. `reply` is what to tell the sender meanwhile.

        Raises:
            TooLargeError: it will not be taken; told as soon as that is known.
        """
        self.data += data
        try:
            self.reply = next(self._waiting)
        except StopIteration:
            return True
        return False

    def _frame(self) -> Waiting:
        yield b""
        head = yield from self._find(b"\r\n\r\n", 0, MOST_HEAD, "431 Request Header Fields Too Large")
        body = head + 4
        if _CHUNKED.search(self.data, 0, body):
            yield from self._continue(body)
            return (yield from self._chunks(body))
        length = _LENGTH.search(self.data, 0, body)
        end = body + (int(length[1]) if length else 0)
        if end - body >= self._most:
            raise TooLargeError("413 Content Too Large")
        if len(self.data) < end:
            yield from self._continue(body)
        while len(self.data) < end:
            yield b""
        return end

    def _continue(self, body: int) -> Generator[bytes, None, None]:
        if len(self.data) == body and _EXPECTS.search(self.data, 0, body):
            yield CONTINUE

    def _chunks(self, at: int) -> Waiting:
        # Twice, for what the sizes of the chunks take; the application looks at the body itself.
        most = at + 2 * self._most
        while True:
            line = yield from self._find(b"\r\n", at, MOST_CHUNK_LINE, "400 Bad Request")
            size = _CHUNK_SIZE.match(self.data, at, line)
            if size is None:
                return line
            if int(size[0], 16) == 0:
                return (yield from self._find(b"\r\n\r\n", line, MOST_HEAD, "431 Request Header Fields Too Large"))
            at = line + 2 + int(size[0], 16) + 2
            while len(self.data) < min(at, most):
                yield b""
            if at >= most:
                raise TooLargeError("413 Content Too Large")

    def _find(self, what: bytes, start: int, most: int, otherwise: str) -> Waiting:
        """Wait until `what` stands at `start` or later, and not more than `most` bytes after it."""
        looked = start
        while (found := self.data.find(what, looked)) < 0:
            if len(self.data) - start > most:
                raise TooLargeError(otherwise)
            looked = max(start, len(self.data) - len(what) + 1)
            yield b""
        return found
