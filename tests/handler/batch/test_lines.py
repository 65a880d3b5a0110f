"""Lines of large files in ranges, compressed or not."""

import gzip
import tracemalloc
from collections.abc import Callable
from time import process_time
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from handler.batch.lines import GZIP_MAGIC, MAX_LINE_BYTES, RANGE_BYTES, Line, lines_of
from handler.errors import UnsupportedObject

MB = 1 << 20


def read_lines(content: bytes, is_gzip: bool = False, after: int = 0) -> list[Line]:
    """All lines, or those after the first `after`, read from their offset."""

    def lines(number: int, position: int) -> list[Line]:
        return list(lines_of(lambda a, b: content[a:b], len(content), is_gzip, number, position))

    every = lines(0, 0)
    return lines(after, every[after - 1].end) if after else every


@given(st.lists(st.binary(max_size=40), max_size=20), st.booleans(), st.integers(1, 50))
def test_lines_do_not_depend_on_the_ranges(parts: list[bytes], is_gzip: bool, size: int) -> None:
    content = b"\n".join(part.replace(b"\n", b"") for part in parts)
    expected = content.split(b"\n")
    expected = expected[:-1] if not expected[-1] else expected
    assume(not (is_gzip and content.startswith(GZIP_MAGIC)))  # gzip within gzip is rejected
    data = gzip.compress(content) if is_gzip else content
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("handler.batch.lines.RANGE_BYTES", size)
        found = read_lines(data, is_gzip)
        assert [line.content for line in found] == [part.removesuffix(b"\r") for part in expected]
        assert [line.number for line in found] == list(range(1, len(found) + 1))
        for after in range(1, len(found)):
            assert read_lines(data, is_gzip, after) == found[after:]


def test_a_line_that_is_too_long_is_not_buffered() -> None:
    content = b"a\n" + b"x" * (2 * MAX_LINE_BYTES) + b"\nb\n" + b"y" * (MAX_LINE_BYTES + 1)
    assert [line.content for line in read_lines(content)] == [b"a", None, b"b", None]


def test_concatenated_gzip_members_are_one_file() -> None:
    data = gzip.compress(b"a\nb") + gzip.compress(b"c\n")
    assert [line.content for line in read_lines(data, True)] == [b"a", b"bc"]


def test_reading_a_large_gzip_file_keeps_only_a_line_in_memory() -> None:
    data = gzip.compress((b"x" * RANGE_BYTES + b"\n") * 64)
    tracemalloc.start()
    try:
        lines = lines_of(lambda a, b: data[a:b], len(data), True)
        assert all(line.content and len(line.content) == RANGE_BYTES for line in lines)
        assert tracemalloc.get_traced_memory()[1] < 16 * RANGE_BYTES
    finally:
        tracemalloc.stop()


def test_a_file_that_is_compressed_twice_is_rejected() -> None:
    with pytest.raises(UnsupportedObject, match="compressed twice"):
        read_lines(gzip.compress(gzip.compress(b"a\n")), True)


@pytest.mark.parametrize(
    "of_size",
    [
        lambda n: (b"\n" * n, False),
        lambda n: (b"a\n" * (n // 2), False),
        lambda n: (b"x" * n, False),
        lambda n: (gzip.compress(b"\n" * n), True),
        lambda n: (gzip.compress(b"\n") * (n // 21), True),
    ],
    ids=["empty", "short", "one", "gzip", "gzip members"],
)
def test_reading_takes_linear_time(of_size: Callable[[int], Any]) -> None:
    def seconds(size: int) -> float:
        content, is_gzip = of_size(size)
        begin = process_time()
        for _ in lines_of(lambda a, b: content[a:b], len(content), is_gzip):
            pass
        return process_time() - begin

    small, large = (min(seconds(size) for _ in range(3)) for size in (MB // 8, MB))
    assert large < 24 * small + 0.01  # 8 times the bytes; quadratic time would be 64 times as long


@pytest.mark.parametrize(
    "data", [b"not gzip", gzip.compress(b"a" * 999)[:-9], gzip.compress(b"a")[:5]]
)
def test_invalid_and_truncated_gzip_is_rejected(data: bytes) -> None:
    with pytest.raises(UnsupportedObject, match="gzip"):
        read_lines(data, True)
