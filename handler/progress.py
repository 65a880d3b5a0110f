"""How far a download is, when it has to stop, and how that is shown."""

import json
import sys
import threading
from collections.abc import Callable
from time import monotonic, perf_counter


class Stopped(Exception):
    """The download that this thread works for was given up: nobody waits for its result."""


class Watch:
    """Shared by the threads of one download: counts bytes, and tells them when it is over."""

    def __init__(self, deadline: float | None = None) -> None:
        self.deadline = deadline
        """In `time.monotonic()` seconds."""
        self.total = 0
        """Bytes that have to be fetched; 0 while that is not known."""
        self.arrived = 0
        """Bytes that were fetched, those of a repeated attempt counted once more."""
        self.failures = 0
        self.last_failure = ""
        """What went wrong last and was tried again."""
        self.committed = False
        """Whether publishing has begun."""
        self.began = perf_counter()
        self._lock = threading.Lock()
        self._over = threading.Event()

    def advance(self, count: int) -> None:
        """Count bytes; negative ones were in vain.

        Raises:
            Stopped: the download is over.
        """
        with self._lock:
            self.arrived += count
        self.check()

    def check(self) -> None:
        """Return while the download goes on.

        Raises:
            Stopped: it is over.
        """
        if self._over.is_set():
            raise Stopped

    def failed(self, reason: str) -> None:
        """Note a failure that will be tried again."""
        with self._lock:
            self.failures += 1
            self.last_failure = reason

    def pause(self, seconds: float) -> None:
        """Wait before the next attempt, or less if the download is over meanwhile.

        Raises:
            Stopped: it is over.
        """
        self._over.wait(seconds)
        self.check()

    def commit(self) -> None:
        """Say that what comes now must not be interrupted.

        Raises:
            Stopped: the download is over, and nobody may publish it.
        """
        with self._lock:
            self.check()
            self.committed = True

    def stop(self) -> None:
        """Make every thread of the download end."""
        with self._lock:
            self._over.set()

    @property
    def seconds(self) -> float:
        """Time since the download began."""
        return perf_counter() - self.began

    def remaining(self) -> float | None:
        """Seconds to the deadline; None without one."""
        return None if self.deadline is None else max(0.0, self.deadline - monotonic())


def megabytes(count: float) -> str:
    """Bytes for people: `548.1 MB`."""
    return f"{count / 1e6:.1f} MB"


class Log:
    """One JSON line a second on stderr, for logs."""

    interval = 1.0

    def __init__(self, uri: str) -> None:
        self._uri = uri

    def show(self, watch: Watch) -> None:
        """Write how far the download is."""
        self._write("downloading", watch)

    def close(self, watch: Watch, finished: bool) -> None:
        """Write how long it took."""
        if finished and watch.total:
            self._write("downloaded", watch)

    def _write(self, message: str, watch: Watch) -> None:
        seconds = watch.seconds
        line = {
            "level": "INFO",
            "message": message,
            "uri": self._uri,
            "bytes": watch.arrived,
            "total": watch.total,
            "seconds": round(seconds, 1),
            "bytes_per_second": round(watch.arrived / seconds) if seconds else 0,
        }
        if watch.failures:
            line |= {"failures": watch.failures, "last_failure": watch.last_failure}
        print(json.dumps(line), file=sys.stderr, flush=True)


class Bar:
    """A bar with bytes, rate and time left, for a terminal."""

    interval = 0.1

    def __init__(self, uri: str) -> None:
        from tqdm import tqdm  # comes with huggingface_hub

        self._bar = tqdm(
            desc=uri, unit="B", unit_scale=True, unit_divisor=1000, leave=False, dynamic_ncols=True
        )

    def show(self, watch: Watch) -> None:
        """Draw how far the download is."""
        if watch.total and self._bar.total != watch.total:
            self._bar.reset(watch.total)
        if watch.last_failure:
            self._bar.set_postfix_str(watch.last_failure[:40], refresh=False)
        self._bar.update(watch.arrived - self._bar.n)

    def close(self, watch: Watch, finished: bool) -> None:
        """Take the bar away and, if all went well, say how long it took."""
        self._bar.close()
        if finished and watch.total:
            rate = watch.arrived / watch.seconds
            print(
                f"{megabytes(watch.arrived)} in {watch.seconds:.1f} s ({megabytes(rate)}/s)",
                file=sys.stderr,
            )


Display = Log | Bar
MakeDisplay = Callable[[str], Display]


def display(uri: str) -> Display:
    """A bar on a terminal, log lines elsewhere."""
    return Bar(uri) if sys.stderr.isatty() else Log(uri)
