"""States of storage before a run: files evicted from the page cache, or on a slow volume."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DROP_CACHES = Path("/proc/sys/vm/drop_caches")
# Typical throughput and latency of an NFS volume for one client.
VOLUME_BYTES_PER_S = 300_000_000
VOLUME_DELAY_MS = 1
MOUNT_SECONDS = 20


def evict(*folders: Path) -> None:
    """Evict the files of directories from the page cache."""
    for path in [file for folder in folders for file in folder.iterdir() if file.is_file()]:
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def can_drop_caches() -> bool:
    """Whether this user may drop the page cache."""
    return os.access(DROP_CACHES, os.W_OK)


def drop_caches() -> None:
    """Drop the whole page cache, including Python and its libraries."""
    os.sync()
    DROP_CACHES.write_text("3\n")


def can_mount_slow_volume() -> bool:
    """Whether `slow_volume` works here (Debian packages nbdkit, libnbd-bin and fuse3)."""
    return all(map(shutil.which, ("nbdkit", "nbdfuse", "fusermount3"))) and os.access(
        "/dev/fuse", os.W_OK
    )


@contextmanager
def slow_volume(folder: Path) -> Iterator[Path]:
    """A copy of the model directory whose largest file is on a slow volume."""
    largest = max((f for f in folder.iterdir() if f.is_file()), key=lambda f: f.stat().st_size)
    with tempfile.TemporaryDirectory() as temp:
        mount, copy = Path(temp, "mount"), Path(temp, "model")
        mount.mkdir()
        copy.mkdir()
        mounted = mount / largest.name
        # kernel_cache: keep cached pages when the file is opened again, as NFS does.
        command = ["nbdfuse", "-r", "-o", "kernel_cache", str(mounted), "--command"]
        command += ["nbdkit", "-s", "-r", "--exit-with-parent", "--filter=delay", "--filter=rate"]
        command += ["file", str(largest), f"rdelay={VOLUME_DELAY_MS}ms"]
        command += [f"rate={8 * VOLUME_BYTES_PER_S}", "burstiness=0.02"]
        mounted.touch()
        server = subprocess.Popen(command)
        try:
            _wait_for(mounted, largest.stat().st_size, server)
            for file in folder.iterdir():
                (copy / file.name).symlink_to(mounted if file == largest else file.absolute())
            yield copy
        finally:
            subprocess.run([_which("fusermount3"), "-u", str(mounted)], check=False)
            server.terminate()  # if it was never mounted
            server.wait(MOUNT_SECONDS)


def _which(program: str) -> str:
    path = shutil.which(program)
    assert path
    return path


def _wait_for(path: Path, size: int, server: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + MOUNT_SECONDS
    while path.stat().st_size != size:
        if server.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"{path} could not be mounted")
        time.sleep(0.01)
