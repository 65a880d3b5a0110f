"""Checks free disk space before a download."""

import os
from collections.abc import Iterator
from contextlib import suppress

from handler.errors import InsufficientStorage
from handler.store.transfer import megabytes

RESERVED = 1 << 20  # for directories and the manifest
_CGROUP = "/sys/fs/cgroup"


def check_free_space(root: str, size: int) -> None:
    """Check that `size` more bytes fit below `root`, which may be in memory.

    Raises:
        InsufficientStorage: they do not fit; the message says what to change.
    """
    stat = os.statvfs(root)
    free, advice = stat.f_bavail * stat.f_frsize, "free some space, or use a larger file system"
    if f"{root}/".startswith("/tmp/"):  # noqa: S108 (Lambda's ephemeral storage)
        # The size that `/tmp` needs for its present content and the model, in MiB.
        used = (stat.f_blocks - stat.f_bavail) * stat.f_frsize
        required = max(512, -(-(used + size + RESERVED) // (64 << 20)) * 64)
        advice = (
            f"set the function's EphemeralStorage to {required} or more, use a packed model of a"
            " lower precision, or use a volume (GPT2_MODEL_DIR)"
        )
    if _is_in_memory(root) and (left := min(_memory_left(), default=free)) < free:
        free, advice = left, "it is in memory: increase the memory limit, or use another directory"
    if free < size + RESERVED:
        raise InsufficientStorage(
            f"{root} has {megabytes(max(0, free))} free, but the model needs {megabytes(size)}:"
            f" {advice}",
            param="GPT2_CACHE_DIR",
        )


def _is_in_memory(root: str) -> bool:
    """Whether `root` is on a tmpfs, by its device number (proc_pid_mountinfo(5))."""
    device = os.stat(root).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with suppress(OSError), open("/proc/self/mountinfo", encoding="utf-8") as file:
        for line in file:
            before, _, after = line.partition(" - ")
            if before.split()[2] == wanted:
                return after.split()[0] in ("tmpfs", "ramfs")
    return False


def _memory_left() -> Iterator[int]:
    """Bytes of memory available in the machine, and in each cgroup of this process.

    proc_meminfo(5), cgroups(7); Linux's "Control Group v2" and "Memory Resource Controller".
    """
    with suppress(OSError, ValueError), open("/proc/meminfo", encoding="ascii") as file:
        yield from (1024 * int(line.split()[1]) for line in file if "MemAvailable" in line)
    with suppress(OSError), open("/proc/self/cgroup", encoding="utf-8") as file:
        for line in file.read().splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers == "":
                yield from _cgroup_left(_CGROUP, group, "memory.max", "memory.current")
            elif controllers == "memory":
                names = "memory.limit_in_bytes", "memory.usage_in_bytes"
                yield from _cgroup_left(f"{_CGROUP}/memory", group, *names)


def _cgroup_left(mount: str, group: str, limit: str, usage: str) -> Iterator[int]:
    """Bytes left in a cgroup and its parents. A container may see its own at the mount's root."""
    while True:
        folder = mount + group.rstrip("/")
        with suppress(OSError, ValueError):  # "max", or not visible in this container
            with open(f"{folder}/memory.stat", encoding="ascii") as file:
                fields = dict(line.split() for line in file)
            files = int(fields.get("total_inactive_file", fields.get("inactive_file", 0)))
            yield _number(f"{folder}/{limit}") - _number(f"{folder}/{usage}") + files
        if not group.strip("/"):
            return
        group = os.path.dirname(group.rstrip("/"))


def _number(path: str) -> int:
    with open(path, encoding="ascii") as file:
        return int(file.read())
