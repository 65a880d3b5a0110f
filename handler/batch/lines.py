"""The lines of a large file that is read in ranges, compressed or not."""

import gzip
import io
import zlib
from collections.abc import Callable, Iterator

from gpt2core.startup.slim_typing import Any, NamedTuple
from handler.errors import UnsupportedObject

RANGE_BYTES = 1 << 20
MAX_LINE_BYTES = 1 << 20
GZIP_MAGIC = b"\x1f\x8b"  # RFC 1952; no UTF-8 text begins with it


class Line(NamedTuple):
    """One line of a file."""

    number: int
    """From 1."""
    content: bytes | None
    """Without the line feed; None if it has more than `MAX_LINE_BYTES`."""
    end: int
    """Offset of the next line in the uncompressed file, in bytes."""


class _Ranges(io.RawIOBase):
    """The bytes of a file from `position` on, read in ranges of the size of the buffer."""

    def __init__(self, read: Callable[[int, int], bytes], position: int, size: int) -> None:
        self._read = read
        self._position = position
        self._size = size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        end = min(self._size, self._position + len(view))
        data = self._read(self._position, end) if self._position < end else b""
        view[: len(data)] = data
        self._position = end
        return len(data)


def lines_of(
    read: Callable[[int, int], bytes], size: int, is_gzip: bool, number: int = 0, position: int = 0
) -> Iterator[Line]:
    """The lines after line `number`, which ends at `position`.

    `read` returns the bytes between two offsets of the file, `size` is its size. What follows the
    last line feed is a line if it is not empty.

    Raises:
        UnsupportedObject: it is not gzip, or truncated, or gzip within gzip.
    """
    ranges = io.BufferedReader(_Ranges(read, 0 if is_gzip else position, size), RANGE_BYTES)
    file = gzip.GzipFile(fileobj=ranges) if is_gzip else ranges
    try:
        if is_gzip and file.peek(2).startswith(GZIP_MAGIC):
            raise UnsupportedObject("the file is compressed twice: compress it once")
        skip = position if is_gzip else 0
        while skip and (skipped := file.read(min(skip, RANGE_BYTES))):
            skip -= len(skipped)
        while piece := file.readline(MAX_LINE_BYTES + 1):
            content, length = piece.removesuffix(b"\n"), len(piece)
            while not piece.endswith(b"\n") and (piece := file.readline(MAX_LINE_BYTES)):
                length += len(piece)  # the line is too long; the rest is skipped
            number, position = number + 1, position + length
            fits = len(content) <= MAX_LINE_BYTES
            yield Line(number, content.removesuffix(b"\r") if fits else None, position)
    except EOFError:
        raise UnsupportedObject("the gzip file is truncated: upload it again") from None
    except (gzip.BadGzipFile, zlib.error):
        raise UnsupportedObject(
            "the file is not valid gzip: upload it again, or uncompressed"
        ) from None
