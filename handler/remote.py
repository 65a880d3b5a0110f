"""What a download needs of a model's source, be it S3 or the Hub, and what every download does."""

import json
import os
import random
import zlib
from collections.abc import Callable, Iterable, Mapping
from hashlib import md5, sha1, sha256
from typing import NamedTuple, Protocol, TypeVar

from gpt2core.layout import INDEX_FILE
from gpt2core.manifest import is_plain_name
from handler.errors import DigestMismatch, DownloadFailed, ModelNotFound
from handler.progress import Watch

READ_BYTES = 1 << 20
ATTEMPTS = 8
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 5.0

Result = TypeVar("Result")


class Transient(Exception):
    """A failure that another attempt may not meet. Its text holds no address and no credential."""


class RemoteFile(NamedTuple):
    """A file at its source, as the listing tells it."""

    name: str
    size: int
    version: str
    """Changes whenever the content does: an ETag or a digest."""
    digests: Mapping[str, str] = {}
    """What is promised of the content, in lower-case hex: any of `sha256`, `sha1`, `md5`, `crc32`,
    and `git`, the SHA-1 of a Git blob."""


class Remote(Protocol):
    """A place that one model is downloaded from.

    Every call raises `Transient` for what another attempt may heal, a `ModelUnavailable` for what
    it will not, and `OSError` for trouble with a local file.
    """

    uri: str

    def find(self, names: Iterable[str]) -> dict[str, RemoteFile]:
        """Which of these files are there. All answers are of the moment of the first."""

    def source(self, files: Iterable[RemoteFile]) -> str:
        """The URI with what pins these files: a commit, or a digest over their versions."""

    def fetch(self, file: RemoteFile, path: str, watch: Watch) -> str:
        """Write a file's bytes to `path`, hashing them on their way; returns their SHA-256.

        Raises:
            DigestMismatch: they are not what `file` promises.
        """


def persist(
    attempt: Callable[[], Result], watch: Watch, progress: Callable[[], int] = lambda: 0
) -> Result:
    """`attempt()`, again after a `Transient` failure, with pauses that double.

    What makes `progress()` grow is not counted as one more failure in a row.

    Raises:
        DownloadFailed: it failed `ATTEMPTS` times in a row.
        Stopped: the download is over.
    """
    failures, reached = 0, progress()
    while True:
        try:
            return attempt()
        except Transient as error:
            watch.failed(str(error))
            failures, reached = (1, progress()) if progress() > reached else (failures + 1, reached)
            if failures >= ATTEMPTS:
                raise DownloadFailed(
                    f"{error}; given up after {failures} attempts in {watch.seconds:.1f} s"
                ) from None
            pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (failures - 1))
            watch.pause(pause * random.uniform(0.5, 1))  # noqa: S311 (spreads the load)


class Hasher:
    """Hashes a file's bytes as they arrive, with SHA-256 and with all that its source promised."""

    def __init__(self, file: RemoteFile) -> None:
        self._file = file
        self._size = 0
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._sha256 = sha256()
        self._others = {
            name: {"sha1": sha1, "git": sha1, "md5": md5}[name](usedforsecurity=False)
            for name in file.digests.keys() & {"sha1", "git", "md5"}
        }
        if "git" in self._others:
            self._others["git"].update(b"blob %d\0" % file.size)
        self._crc32 = 0 if "crc32" in file.digests else None

    def update(self, data: bytes | memoryview) -> None:
        """Take in the next bytes."""
        self._size += len(data)
        self._sha256.update(data)
        for other in self._others.values():
            other.update(data)
        if self._crc32 is not None:
            self._crc32 = zlib.crc32(data, self._crc32)

    def read(self, fd: int, end: int) -> None:
        """Take in the bytes of an open file from where we are up to `end`, or to the file's end."""
        while self._size < end and (
            count := os.preadv(fd, [self._buffer[: end - self._size]], self._size)
        ):
            self.update(self._buffer[:count])

    def finish(self) -> str:
        """The SHA-256 of all bytes.

        Raises:
            DigestMismatch: they are not what was promised.
        """
        file, digest = self._file, self._sha256.hexdigest()
        if self._size != file.size:
            raise DigestMismatch(f"{file.name} has {self._size} bytes instead of {file.size}")
        found = {name: other.hexdigest() for name, other in self._others.items()}
        found["sha256"] = digest
        if self._crc32 is not None:
            found["crc32"] = f"{self._crc32:08x}"
        for name, promised in file.digests.items():
            if found[name] != promised:
                raise DigestMismatch(
                    f"{file.name} has the {name} {found[name]}, its source promises {promised}"
                )
        return digest


def shards_of(index: bytes) -> list[str]:
    """The shard files that `model.safetensors.index.json` names, each once.

    Raises:
        ModelNotFound: the index is broken, or a name leads out of the directory.
    """
    try:
        names = list(dict.fromkeys(json.loads(index)["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ModelNotFound(f"{INDEX_FILE} is no index of shards") from None
    for name in names:
        if not is_plain_name(name) or not name.endswith(".safetensors"):
            raise ModelNotFound(
                f"{INDEX_FILE} names {ascii(name)[:80]}, which is no shard beside it"
            )
    if not names:
        raise ModelNotFound(f"{INDEX_FILE} names no shard")
    return names
