"""Retries, threads, hashing and progress of downloads, for any source.

The threads are daemons: `concurrent.futures` would wait at exit for threads that a stalled server
blocks.
"""

import json
import os
import random
import sys
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import md5, sha1, sha256
from math import inf
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from handler.errors import DigestMismatch, DownloadFailed

if TYPE_CHECKING:
    from handler.store.part import Part

ATTEMPTS = 8
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 5.0
READ_BYTES = 1 << 20

Item = TypeVar("Item")
Result = TypeVar("Result")


class Stopped(Exception):
    """The download of this thread has been stopped."""


CHECK_NETWORK = (
    "check the network, proxies and HF_ENDPOINT or AWS_ENDPOINT_URL_S3; a function in a VPC needs a"
    " NAT gateway for the Hub, and a NAT gateway or an S3 gateway endpoint for S3"
)


class Transient(Exception):
    """A failure that a retry may resolve. The message contains no URL and no credentials."""


class ETagMismatch(DigestMismatch):
    """The MD5 does not match the ETag, which may not be an MD5. `sha256` is of the content."""

    def __init__(self, message: str, sha256: str) -> None:
        super().__init__(message)
        self.sha256 = sha256


class RemoteFile(NamedTuple):
    """A file at its source."""

    name: str
    size: int
    version: str
    """Changes with the content: an ETag or a digest."""
    digests: Mapping[str, str] = {}
    """Expected digests in lower-case hex: any of `sha256`, `sha1`, `crc32`, `git` (the SHA-1 of a
    Git blob) and `md5` (an ETag that looks like one)."""


class Remote(Protocol):
    """The source of one model.

    Every method may raise `Transient` (retry), `ModelUnavailable` (do not retry), `Stopped`, and
    `OSError` for local files.
    """

    def find(self, names: Iterable[str], state: "DownloadState") -> dict[str, RemoteFile]:
        """The files that exist among `names`, all from the state at the first call."""

    def source(self, files: Iterable[RemoteFile]) -> str:
        """The URI with the version of these files: a commit, or a digest of their versions."""

    def with_digests(self, file: RemoteFile) -> RemoteFile:
        """The file with all digests that the source has."""

    def fetch(self, file: RemoteFile, part: "Part", state: "DownloadState", again: bool) -> None:
        """Download the missing bytes of `file` to `part`. `again`: the first digest was wrong."""


class DownloadState:
    """Progress, deadline and stop flag, shared by the threads of one download."""

    def __init__(self, deadline: float | None = None) -> None:
        self._deadline = deadline
        self._began = perf_counter()
        self.total = 0  # bytes; 0 while unknown
        self.received = 0  # bytes
        self.packed = self.to_pack = 0  # bytes of the packed form: written, total
        self.failures = 0
        self.last_failure = ""  # the last error that was retried
        self.stopped = False
        self.changed = threading.Condition()
        """Notified when the download stops, and by `map_in_order` when a task ends."""

    def advance(self, count: int) -> None:
        """Count received bytes; negative if they were discarded. Raises `Stopped`."""
        with self.changed:
            self.received += count
        self.check()

    def show_packing(self, written: int, total: int) -> None:
        """Record the progress of packing. Raises `Stopped`."""
        with self.changed:
            self.packed, self.to_pack = written, total
        self.check()

    def check(self) -> None:
        """Raise `Stopped` if the download has been stopped."""
        if self.stopped:
            raise Stopped

    def failed(self, reason: str) -> None:
        """Record a failure that will be retried."""
        with self.changed:
            self.failures += 1
            self.last_failure = reason

    def pause(self, seconds: float) -> None:
        """Wait before a retry; raises `Stopped` as soon as the download is stopped."""
        with self.changed:
            self.changed.wait_for(lambda: self.stopped, seconds)
        self.check()

    def stop(self) -> None:
        """End all threads of the download."""
        with self.changed:
            self.stopped = True
            self.changed.notify_all()

    @property
    def seconds(self) -> float:
        """Seconds since the download started."""
        return perf_counter() - self._began

    def remaining(self) -> float:
        """Seconds until the deadline; infinite without one."""
        return inf if self._deadline is None else max(0.0, self._deadline - monotonic())


def retry(
    attempt: Callable[[], Result], state: DownloadState, progress: Callable[[], int] = lambda: 0
) -> Result:
    """Call `attempt` until it succeeds, with exponential backoff after `Transient` failures.

    An attempt that increases `progress()` resets the count of consecutive failures.

    Raises:
        DownloadFailed: it failed `ATTEMPTS` times in a row.
        Stopped: the download has been stopped.
    """
    failures, reached = 0, progress()
    while True:
        try:
            return attempt()
        except Transient as error:
            state.failed(str(error))
            failures, reached = (1, progress()) if progress() > reached else (failures + 1, reached)
            if failures >= ATTEMPTS:
                raise DownloadFailed(
                    f"{error}; failed after {failures} attempts in {state.seconds:.1f} s:"
                    f" {CHECK_NETWORK}"
                ) from None
            pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (failures - 1))
            state.pause(pause * random.uniform(0.5, 1))  # noqa: S311 (jitter)


def map_in_order(
    task: Callable[[Item], Result], items: Sequence[Item], threads: int, state: DownloadState
) -> Iterator[Result]:
    """Yield `task(item)` for each item, in order, while later items are processed.

    The first error of a task is raised immediately. After an error, or when the iterator is closed
    or the download stopped, no further item is started. Running tasks are not waited for.

    Raises:
        Stopped: the download has been stopped.
    """
    upcoming = iter(enumerate(items))
    results: dict[int, Result] = {}
    failure: BaseException | None = None
    changed = state.changed

    def work() -> None:
        nonlocal failure
        while True:
            with changed:
                following = None if failure or state.stopped else next(upcoming, None)
            if following is None:
                return
            number, item = following
            try:
                result = task(item)
            except BaseException as error:  # noqa: BLE001 (raised again below)
                with changed:
                    failure = failure or error
                    changed.notify_all()
                return
            with changed:
                results[number] = result
                changed.notify_all()

    for _ in range(min(threads, len(items))):
        threading.Thread(target=work, daemon=True).start()
    try:
        for number in range(len(items)):
            with changed:
                while not (number in results or failure or state.stopped):
                    changed.wait()
                if failure:
                    raise failure
                state.check()
                result = results.pop(number)
            yield result
    finally:
        with changed:
            failure = failure or Stopped()


class _Crc32:
    def __init__(self) -> None:
        self._value = 0

    def update(self, data: memoryview) -> None:
        self._value = zlib.crc32(data, self._value)

    def hexdigest(self) -> str:
        return f"{self._value:08x}"


class Hasher:
    """Hashes a file in order with SHA-256 and with the algorithms of its expected digests."""

    def __init__(self, file: RemoteFile) -> None:
        self.size = 0
        """Bytes hashed."""
        self._file = file
        self._hashes: dict[str, Any] = {"sha256": sha256()}
        for name in file.digests.keys() & {"sha1", "git"}:
            self._hashes[name] = sha1(usedforsecurity=False)
        if "git" in file.digests:
            self._hashes["git"].update(b"blob %d\0" % file.size)
        if "crc32" in file.digests:
            self._hashes["crc32"] = _Crc32()
        if "md5" in file.digests:  # compared last
            self._hashes["md5"] = md5(usedforsecurity=False)

    @property
    def sha256(self) -> str:
        """SHA-256 of the bytes so far."""
        return str(self._hashes["sha256"].hexdigest())

    def read(self, fd: int, end: int) -> None:
        """Hash the next bytes of an open file, up to `end` or the end of the file."""
        buffer = memoryview(bytearray(READ_BYTES))
        while self.size < end and (count := os.preadv(fd, [buffer[: end - self.size]], self.size)):
            self.size += count
            for each in self._hashes.values():
                each.update(buffer[:count])

    def finish(self) -> str:
        """Compare the digests; returns the SHA-256.

        Raises:
            DigestMismatch: a digest or the size is wrong; `ETagMismatch` if only the ETag is.
        """
        file = self._file
        if self.size != file.size:
            raise DigestMismatch(f"{file.name} has {self.size} bytes, expected {file.size}")
        for name, found in self._hashes.items():
            digest, expected = found.hexdigest(), file.digests.get(name)
            if expected not in (None, digest):
                message = f"{file.name} has the {name} {digest}, expected {expected}"
                raise (
                    ETagMismatch(message, self.sha256) if name == "md5" else DigestMismatch(message)
                )
        return self.sha256


def megabytes(count: float) -> str:
    """Format bytes as megabytes: `548.1 MB`."""
    return f"{count / 1e6:.1f} MB"


class Display:
    """Progress on stderr: a bar on a terminal, otherwise one JSON line per second."""

    def __init__(self, uri: str) -> None:
        self._uri, self._bar, self.interval = uri, None, 1.0
        if sys.stderr.isatty():
            from tqdm import tqdm  # comes with huggingface_hub

            self.interval = 0.1
            self._bar = tqdm(desc=uri, unit="B", unit_scale=True, leave=False, dynamic_ncols=True)

    def show(self, state: DownloadState, message: str = "downloading") -> None:
        """Print the progress."""
        if self._bar is not None:
            done, total = state.received, state.total
            if state.to_pack:
                done, total = state.packed, state.to_pack
                self._bar.set_description_str(f"{self._uri}, packing", refresh=False)
            if total and self._bar.total != total:
                self._bar.reset(total)
            self._bar.set_postfix_str(state.last_failure[:40], refresh=False)
            self._bar.update(done - self._bar.n)
            return
        rate = round(state.received / state.seconds)
        line = {"level": "INFO", "message": message, "uri": self._uri, "bytes": state.received}
        line |= {"total": state.total, "seconds": round(state.seconds, 1), "bytes_per_second": rate}
        if state.failures:
            line |= {"failures": state.failures, "last_failure": state.last_failure}
        print(json.dumps(line), file=sys.stderr, flush=True)

    def close(self, state: DownloadState, finished: bool) -> None:
        """Remove the bar and, after a success, print the duration."""
        if self._bar is not None:
            self._bar.close()
        if not finished or not state.total:
            return
        if self._bar is None:
            self.show(state, "downloaded")
            return
        done, rate = megabytes(state.received), megabytes(state.received / state.seconds)
        print(f"{done} in {state.seconds:.1f} s ({rate}/s)", file=sys.stderr)
