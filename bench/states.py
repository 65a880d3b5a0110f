"""What lies between a model's file and a process: page cache warm or not, or a slow volume."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DROP_CACHES = Path("/proc/sys/vm/drop_caches")
# What an NFS volume may give one client, and how long it takes to answer one request.
VOLUME_BYTES_PER_S = 300_000_000
VOLUME_DELAY_MS = 1
MOUNT_SECONDS = 20


def evict(*folders: Path) -> None:
    """Take the files of model directories out of the page cache."""
    for path in [file for folder in folders for file in folder.iterdir() if file.is_file()]:
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def can_drop_caches() -> bool:
    """Whether this user may empty the whole page cache."""
    return os.access(DROP_CACHES, os.W_OK)


def drop_caches() -> None:
    """Empty the whole page cache: Python and every library come from disk, too."""
    os.sync()
    DROP_CACHES.write_text("3\n")


def can_slow_down() -> bool:
    """Whether a slow volume can be made here (Debian packages nbdkit and nbdfuse, and FUSE)."""
    return all(map(shutil.which, ("nbdkit", "nbdfuse", "fusermount3"))) and os.access(
        "/dev/fuse", os.W_OK
    )


@contextmanager
def slow_volume(folder: Path) -> Iterator[Path]:
    """The model directory again, its largest file on a volume of limited rate, with latency."""
    largest = max((f for f in folder.iterdir() if f.is_file()), key=lambda f: f.stat().st_size)
    with tempfile.TemporaryDirectory() as place:
        mount, copy = Path(place, "mount"), Path(place, "model")
        mount.mkdir()
        copy.mkdir()
        mounted = mount / largest.name
        # kernel_cache: NFS keeps what it read when a file is opened again; FUSE would not.
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
            subprocess.run([_found("fusermount3"), "-u", str(mounted)], check=False)
            server.terminate()  # where it was never mounted
            server.wait(MOUNT_SECONDS)


def _found(program: str) -> str:
    path = shutil.which(program)
    assert path
    return path


def _wait_for(path: Path, size: int, server: "subprocess.Popen[bytes]") -> None:
    give_up = time.monotonic() + MOUNT_SECONDS
    while path.stat().st_size != size:
        if server.poll() is not None or time.monotonic() > give_up:
            raise SystemExit(f"{path} could not be mounted")
        time.sleep(0.01)
