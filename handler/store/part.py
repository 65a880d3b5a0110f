"""A partial download: written by several threads, hashed in order, resumed by the next attempt."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from typing import Final

from handler.store.transfer import ETagMismatch, Hasher, RemoteFile, Stopped

FLUSH_BYTES = 64 << 20


class Part:
    """A partial file named `KEY.SIZE.SHA256.part`.

    `KEY` identifies the remote file; size and SHA-256 are those of the prefix that was hashed at
    the last checkpoint. The next attempt hashes this prefix again and keeps it if it is intact.
    """

    def __init__(self, folder: str, file: RemoteFile) -> None:
        self._key: Final = os.path.join(folder, _key(file))
        self._file: Final = file
        self._lock = threading.RLock()
        self.scratch: Final = f"{os.path.dirname(folder)}/{_key(file)}"
        """A path for temporary files of the source; not resumed."""
        self.path = f"{self._key}.part"
        self._hasher = Hasher(file)
        self._checkpointed = 0
        for path in parts_of(folder, file):
            self._resume(path)
        for path in parts_of(folder, file):
            if path != self.path:
                os.unlink(path)
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        os.truncate(self._fd, self._checkpointed)

    def _resume(self, path: str) -> None:
        _, size, digest = [*os.path.basename(path).split("."), "", ""][:3]
        if size.isdigit() and self._checkpointed < int(size) <= self._file.size:
            hasher = Hasher(self._file)
            with open(path, "rb") as file:
                hasher.read(file.fileno(), int(size))
            if (hasher.size, hasher.sha256) == (int(size), digest):
                self.path, self._hasher, self._checkpointed = path, hasher, int(size)

    @property
    def size(self) -> int:
        """Bytes that are written and hashed."""
        return self._hasher.size

    @contextmanager
    def opened(self) -> Iterator[int]:
        """A duplicate file descriptor for writing.

        A thread may outlive its download; by then, the number of a closed descriptor may belong to
        another file.
        """
        with self._locked():
            fd = os.dup(self._fd)
        try:
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._lock:
            if self._fd < 0:
                raise Stopped
            yield

    def hash_to(self, end: int) -> None:
        """Hash the file up to `end`, and flush it to disk in the background."""
        with self._locked():
            self._hasher.read(self._fd, end)
            if self.size - self._checkpointed >= FLUSH_BYTES:
                self._checkpoint()
                threading.Thread(target=self._flush, daemon=True).start()

    def replace(self, path: str) -> None:
        """Replace the content by a complete file at `path`."""
        with self._locked():
            self.remove()
            os.replace(path, self.path)
            os.close(self._fd)
            self._fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
            self.hash_to(self._file.size + 1)

    def finish(self, ignore_etag: bool = False) -> str:
        """Flush the complete file to disk and return its SHA-256.

        `ignore_etag` accepts an ETag that does not match: it may not be an MD5.

        Raises:
            DigestMismatch: the content does not match the digests of its source.
        """
        try:
            digest = self._hasher.finish()
        except ETagMismatch as error:
            if not ignore_etag:
                raise
            digest = error.sha256
        with self._locked():
            os.fsync(self._fd)
            self._checkpoint()
        return digest

    def remove(self) -> None:
        """Discard the content."""
        with self._locked():
            os.truncate(self._fd, 0)
            self._hasher, self._checkpointed = Hasher(self._file), 0

    def close(self) -> None:
        """Keep the content for the next attempt. Does not raise."""
        with suppress(OSError, Stopped), self._locked():
            fd, self._fd = self._fd, -1
            os.close(fd)
            self._checkpoint()
            if self.size < min(1, self._file.size):
                os.unlink(self.path)

    def _checkpoint(self) -> None:
        if self.size > self._checkpointed:
            path = f"{self._key}.{self.size}.{self._hasher.sha256}.part"
            os.rename(self.path, path)
            self.path, self._checkpointed = path, self.size

    def _flush(self) -> None:
        with suppress(OSError, Stopped), self.opened() as fd:  # the last flush reports the error
            os.fdatasync(fd)


def write(fd: int, data: bytes, at: int) -> None:
    """Write all of `data`. A full disk first writes a part of it without an error."""
    rest = memoryview(data)
    while rest:
        written = os.pwrite(fd, rest, at)
        rest, at = rest[written:], at + written


def parts_of(folder: str, file: RemoteFile) -> list[str]:
    """The partial files of a remote file in a folder."""
    key = _key(file)
    return [os.path.join(folder, name) for name in os.listdir(folder) if name.startswith(key)]


def _key(file: RemoteFile) -> str:
    """Identifies a remote file by its name, size and version."""
    return sha256(f"{file.name}\0{file.size}\0{file.version}".encode()).hexdigest()[:32]
