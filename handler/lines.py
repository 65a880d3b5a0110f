"""Lines of a large file that is read in ranges, compressed or not. Pure but for the reading."""

import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from handler.errors import UnsupportedObject

RANGE_BYTES = 1 << 20
MAX_LINE_BYTES = 1 << 20
_GZIP = 16 + zlib.MAX_WBITS  # with gzip's header and checksum


class Line(NamedTuple):
    """One line of a file."""

    number: int
    """From 1."""
    content: bytes | None
    """Without its end; None where it has more than `MAX_LINE_BYTES`."""
    end: int
    """Bytes from the file's beginning to the next line, of the file when it is not compressed."""


def lines_of(
    read: Callable[[int, int], bytes], size: int, is_gzip: bool, number: int, position: int
) -> Iterator[Line]:
    """The lines behind line `number`, which ends at `position`.

    `read` gives bytes from one place in the file to another, `size` is where they end. What follows
    the last line feed is a line if it is not empty.

    Raises:
        UnsupportedObject: it is not gzip, or not all of it.
    """
    chunks = _gunzipped(read, size) if is_gzip else _ranges(read, position, size)
    skip = position if is_gzip else 0
    kept, length = bytearray(), 0
    for chunk in chunks:
        if skip >= len(chunk):
            skip -= len(chunk)
            continue
        rest, skip = chunk[skip:], 0
        while True:
            piece, feed, behind = rest.partition(b"\n")
            length += len(piece)
            if length <= MAX_LINE_BYTES:
                kept += piece
            if not feed:
                break
            number, position = number + 1, position + length + 1
            yield Line(number, _content(kept, length), position)
            kept, length, rest = bytearray(), 0, behind
    if length:
        yield Line(number + 1, _content(kept, length), position + length)


def _content(kept: bytearray, length: int) -> bytes | None:
    return bytes(kept).removesuffix(b"\r") if length <= MAX_LINE_BYTES else None


def _ranges(read: Callable[[int, int], bytes], begin: int, size: int) -> Iterator[bytes]:
    while begin < size:
        end = min(size, begin + RANGE_BYTES)
        yield read(begin, end)
        begin = end


def _gunzipped(read: Callable[[int, int], bytes], size: int) -> Iterator[bytes]:
    """The content of one gzip file or of several in a row, never more than a range at once."""
    unpacker = zlib.decompressobj(_GZIP)
    begun = False
    try:
        for data in _ranges(read, 0, size):
            while data:
                begun = True
                yield unpacker.decompress(data, RANGE_BYTES)
                data = unpacker.unconsumed_tail
                if unpacker.eof:
                    data = unpacker.unused_data
                    unpacker, begun = zlib.decompressobj(_GZIP), False
    except zlib.error:
        raise UnsupportedObject("the file is no gzip, or is damaged") from None
    if begun:
        raise UnsupportedObject("the gzip file ends in the middle")
