"""Reads a model's files into the page cache while the process is still importing modules.

Several threads read in file order: on a network file system many concurrent requests take hardly
longer than one. Files that are already cached are skipped. Errors are ignored: opening the model
raises them again.
"""

import os
from _thread import allocate_lock, start_new_thread

from gpt2core.files.names import PACKED_FILE, SINGLE_FILE

THREADS = 8
CHUNK_BYTES = 1 << 20
_PROBES = 32
# An engine opens the first of these that exists, else all shards.
_FILES = (PACKED_FILE, SINGLE_FILE)


def begin(model_dir: str, *, even_cached: bool = False) -> None:
    """Start to read the files that `Engine.open(model_dir)` maps, unless they are cached.

    `even_cached` reads them in any case: after a snapshot restore the page cache seems full, but
    its pages are only loaded when they are accessed.
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
    """Whether samples of a file can be read without blocking (preadv2(2), RWF_NOWAIT)."""
    flag = getattr(os, "RWF_NOWAIT", None)
    if flag is None:
        return False
    byte = bytearray(1)
    try:
        return all(
            os.preadv(fd, [byte], offset, flag)
            for offset in range(0, size, max(1, size // _PROBES))
        )
    except OSError:  # BlockingIOError, or not supported by the file system
        return False


class _Reader:
    """Reads one file with several threads; the last one to finish closes it."""

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self._offsets = iter(range(0, size, CHUNK_BYTES))
        self._lock = allocate_lock()
        self._threads = 0

    def start(self) -> None:
        """Start up to `THREADS` threads; the interpreter does not wait for them at exit."""
        self._threads = 1  # this thread, until all have been started
        try:
            for _ in range(THREADS):
                with self._lock:
                    self._threads += 1
                start_new_thread(self._read, ())
        except RuntimeError:  # thread limit reached: the remaining pages are read on demand
            self._finish()
        self._finish()

    def _read(self) -> None:
        try:
            buffer = bytearray(CHUNK_BYTES)
            while True:
                with self._lock:
                    offset = next(self._offsets, None)
                if offset is None:
                    return
                os.preadv(self._fd, [buffer], offset)  # releases the GIL
        except (OSError, MemoryError):
            return
        finally:
            self._finish()

    def _finish(self) -> None:
        """Count one thread as finished; the last one closes the file."""
        with self._lock:
            self._threads -= 1
            last = not self._threads
        if last:
            os.close(self._fd)
