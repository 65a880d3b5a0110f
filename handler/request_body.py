"""Reads the body of an HTTP/1.1 request (RFC 9112, sections 6 and 7)."""

from email.message import Message
from io import BufferedIOBase

from handler.sources.source import MAX_PAYLOAD_BYTES

MAX_LINE_BYTES = 1 << 16  # of a chunk's size with its extensions, and of a trailer field


class MalformedRequest(Exception):
    """The request cannot be read. The reply has `status`; the connection must be closed."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def read_body(headers: Message, file: BufferedIOBase) -> bytes:
    """The complete body, without transfer coding.

    Raises:
        MalformedRequest: the body is too large, truncated, or has an invalid length or coding.
    """
    length = headers.get("Content-Length", "0")
    coding = headers.get("Transfer-Encoding")
    if coding is not None:
        if "Content-Length" in headers:
            raise MalformedRequest(400, "send Content-Length or Transfer-Encoding, not both")
        if coding.strip().lower() != "chunked":
            raise MalformedRequest(
                501, f"Transfer-Encoding is {coding[:20]!a}; the only supported one is chunked"
            )
        return _read_chunks(file)
    if not (length.isascii() and length.isdigit()):
        raise MalformedRequest(400, f"Content-Length is {length[:20]!a}, not a number")
    if len(length) > 15 or int(length) > MAX_PAYLOAD_BYTES:
        raise _too_large()
    return _read_exactly(file, int(length))


def _read_chunks(file: BufferedIOBase) -> bytes:
    """A chunked body; chunk extensions and trailers are ignored."""
    body = b""
    while True:
        digits = _read_line(file).partition(b";")[0].strip()
        if not digits or len(digits) > 15 or digits.strip(b"0123456789abcdefABCDEF"):
            raise MalformedRequest(400, "a chunk does not begin with its size")
        size = int(digits, 16)
        if not size:
            break
        if len(body) + size > MAX_PAYLOAD_BYTES:
            raise _too_large()
        body += _read_exactly(file, size)
        if _read_line(file):
            raise MalformedRequest(400, "a chunk is longer than its size")
    while _read_line(file):
        pass
    return body


def _read_exactly(file: BufferedIOBase, count: int) -> bytes:
    data = file.read(count)
    if len(data) < count:
        raise MalformedRequest(400, "the body is truncated")
    return data


def _read_line(file: BufferedIOBase) -> bytes:
    line = file.readline(MAX_LINE_BYTES)
    if not line.endswith(b"\n"):
        raise MalformedRequest(
            400, f"the body is truncated, or a line of it exceeds {MAX_LINE_BYTES} bytes"
        )
    return line.rstrip(b"\r\n")


def _too_large() -> MalformedRequest:
    return MalformedRequest(413, f"the body exceeds the limit of {MAX_PAYLOAD_BYTES} bytes")
