"""Detects changes in large files from samples of their bytes.

A packed file may be in the same directory as its raw files. Modification times do not show whether
those have changed, because a copy updates them, and reading half a gigabyte would cost more than
packing saves. So the size is compared, and a digest of samples: the header of a safetensors file,
and the beginning, the end and places between them of every tensor, so that a change of a single
tensor is detected.
"""

import os
from collections.abc import Sequence
from typing import Any

from gpt2core.files.safetensors import open_safetensors

_WHOLE = 64 << 10  # smaller files and tensors are read in full
_PIECE = 4096  # one page
_PIECES = 4


def record_sample(path: str) -> dict[str, Any]:
    """The size of a file, the sampled ranges [begin, end) and their digest, as JSON values.

    Large safetensors files are sampled, other files are read in full.

    Raises:
        CheckpointError: the safetensors file is invalid.
        OSError: the file cannot be read.
    """
    size = os.path.getsize(path)
    if size <= _WHOLE or not path.endswith(".safetensors"):
        ranges = [[0, size]]
    else:
        sizes = [tensor.raw.nbytes for tensor in open_safetensors(path).values()]
        begin = size - sum(sizes)
        ranges = [[0, begin]]
        for length in sizes:  # in the order of the file
            ranges += _pieces(begin, begin + length)
            begin += length
    ranges = _merge_adjacent(ranges)
    return {"size": size, "ranges": ranges, "digest": _digest(path, ranges)}


def is_as_recorded(path: str, sample: Any) -> bool:
    """Whether a file still has the size and the digest that `record_sample` returned.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        ranges = [(int(begin), int(end)) for begin, end in sample["ranges"]]
        size, digest = int(sample["size"]), str(sample["digest"])
    except (KeyError, TypeError, ValueError):
        return False
    return os.path.getsize(path) == size and _digest(path, ranges) == digest


def _pieces(begin: int, end: int) -> list[list[int]]:
    if end - begin <= _WHOLE:
        return [[begin, end]]
    step = (end - begin - _PIECE) // (_PIECES - 1)
    return [[at, at + _PIECE] for at in range(begin, begin + step * _PIECES, step)]


def _merge_adjacent(ranges: list[list[int]]) -> list[list[int]]:
    """Merge ranges that touch, and drop empty ones."""
    merged: list[list[int]] = []
    for begin, end in ranges:
        if merged and merged[-1][1] == begin:
            merged[-1][1] = end
        elif begin < end:
            merged.append([begin, end])
    return merged


def _digest(path: str, ranges: Sequence[Sequence[int]]) -> str:
    from hashlib import blake2b  # 1 ms; needed only if a packed file is next to its raw files

    digest = blake2b(digest_size=16)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if hasattr(os, "posix_fadvise"):  # read all ranges from disk in parallel
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
            for begin, end in ranges:
                os.posix_fadvise(fd, begin, end - begin, os.POSIX_FADV_WILLNEED)
        for begin, end in ranges:
            digest.update(os.pread(fd, end - begin, begin))
    finally:
        os.close(fd)
    return digest.hexdigest()
