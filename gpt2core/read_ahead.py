"""Brings a model's files into memory while the process is still importing.

Several threads read at once, in the order of the file: a network file system answers one request
after a while and many requests in the same while. What is in memory already is left alone. Imports
nothing heavy, holds no lock, and never raises: whoever opens the model will meet the same error.
"""

import os
from _thread import allocate_lock, start_new_thread

from gpt2core.layout import PACKED_FILE, SINGLE_FILE

THREADS = 8
CHUNK_BYTES = 1 << 20
_PROBES = 32
# What an engine opens, the first that is there; of shards all.
_FILES = (PACKED_FILE, SINGLE_FILE)


def begin(model_dir: str, *, even_cached: bool = False) -> None:
    """Begin to read what `Engine.open(model_dir)` will map, unless it is in the page cache.

    `even_cached`: read it anyway. A restored snapshot's page cache seems full, and its pages come
    from afar all the same, when they are first touched.
    """
    try:
        for path in _weights_files(model_dir):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            size = os.fstat(fd).st_size
            if not even_cached and _is_cached(fd, size):
                os.close(fd)
            else:
                _Reader(fd, size).start()
    except OSError:
        return


def _weights_files(model_dir: str) -> list[str]:
    for name in _FILES:
        path = os.path.join(model_dir, name)
        if os.path.isfile(path):
            return [path]
    names = sorted(name for name in os.listdir(model_dir) if name.endswith(".safetensors"))
    return [path for name in names if os.path.isfile(path := os.path.join(model_dir, name))]


def _is_cached(fd: int, size: int) -> bool:
    """Whether samples of a file can be read without waiting (preadv2(2), RWF_NOWAIT)."""
    flag = getattr(os, "RWF_NOWAIT", None)
    if flag is None:
        return False
    byte = bytearray(1)
    try:
        return all(
            os.preadv(fd, [byte], offset, flag)
            for offset in range(0, size, max(1, size // _PROBES))
        )
    except OSError:  # BlockingIOError; or this file system cannot tell
        return False


class _Reader:
    """One file's chunks, taken by several threads; the last one to end closes the file."""

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self._offsets = iter(range(0, size, CHUNK_BYTES))
        self._taking = allocate_lock()
        self._threads = THREADS

    def start(self) -> None:
        """Start the threads; the interpreter's exit does not wait for them."""
        for _ in range(THREADS):
            start_new_thread(self._read, ())

    def _read(self) -> None:
        buffer = bytearray(CHUNK_BYTES)
        try:
            while True:
                with self._taking:
                    offset = next(self._offsets, None)
                if offset is None:
                    return
                os.preadv(self._fd, [buffer], offset)  # without the GIL
        except OSError:
            return
        finally:
            with self._taking:
                self._threads -= 1
                last = not self._threads
            if last:
                os.close(self._fd)
