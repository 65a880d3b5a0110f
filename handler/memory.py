"""A model kept in memory: GPT2_CACHE_DIR=memory, for a `/tmp` that is too small.

The files are memfds, which the engine maps as it maps any file. They live as long as the process;
a directory of symbolic links to them stands for the model directory.
"""

import atexit
import os
import shutil
import tempfile

from handler.errors import NoRoom
from handler.progress import megabytes
from handler.remote import RemoteFile


class MemoryStaging:
    """Has the methods of `staging.Staging`, and no disk."""

    def __init__(self) -> None:
        self.model_dir = tempfile.mkdtemp(prefix="gpt2-memory-")
        self._files: dict[str, int] = {}
        self._digests: dict[str, str] = {}
        self._published = False
        atexit.register(shutil.rmtree, self.model_dir, ignore_errors=True)

    def adopt(self, file: RemoteFile) -> str | None:
        """A file of this very download; nothing outlives one that failed."""
        return self._digests.get(file.name)

    def require(self, size: int) -> None:
        """Look whether `size` bytes fit into the memory that is available now.

        Raises:
            NoRoom: they do not.
        """
        free = _available()
        if free is not None and free < size:
            raise NoRoom(
                f"{megabytes(free)} of memory are available and the model needs {megabytes(size)}:"
                " give the function more MemorySize, or use a volume (GPT2_MODEL_DIR)",
                param="GPT2_CACHE_DIR",
            )

    def path_for(self, file: RemoteFile) -> str:
        """A new memfd, by a link to it.

        A link, because a thread that comes too late must not find another file under its number.
        """
        path = os.path.join(self.model_dir, f"{file.name}.part")
        if os.path.lexists(path):
            os.unlink(path)
            os.close(self._files.pop(file.name))
        self._files[file.name] = os.memfd_create(file.name)
        os.symlink(f"/proc/self/fd/{self._files[file.name]}", path)
        return path

    def keep(self, file: RemoteFile, path: str, digest: str) -> None:
        """Make a verified file part of the model."""
        os.rename(path, os.path.join(self.model_dir, file.name))
        self._digests[file.name] = digest

    def reject(self) -> None:
        """Nothing outlives it anyway."""

    def publish(self, manifest: bytes, model_dir: str | None = None) -> str:  # noqa: ARG002 (as on disk)
        """The model directory, from now on to stay."""
        self._published = True
        return self.model_dir

    def close(self) -> None:
        """Give the memory back unless the model was published."""
        if self._published:
            return
        shutil.rmtree(self.model_dir, ignore_errors=True)
        while self._files:
            os.close(self._files.popitem()[1])


def _available() -> int | None:
    """Bytes that can be had without swapping (proc_meminfo(5)); None where that is not told."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return 1024 * int(line.split()[1])
    except (OSError, ValueError, IndexError):
        pass
    return None
