"""Publishes models: files are downloaded below `incoming/` and then renamed into place.

    ROOT/revisions/<digest>/           complete models, immutable
    ROOT/CURRENT                       the digest of the current one
    ROOT/incoming/<writer>/parts/      partial files of one writer
    ROOT/incoming/<writer>/model/      its complete, verified files

Concurrent writers are safe: no locks, atomic rename. (On network file systems several processes may
get the same lock.) Each writer has its own directory, and the first rename wins. The next writer
takes over the partial files of a writer that failed or died, and hashes them again.
"""

import os
import secrets
import shutil
from contextlib import suppress
from hashlib import file_digest, sha256
from typing import Final

from gpt2core.errors import ModelError
from gpt2core.files.manifest import check_sizes, read_manifest
from gpt2core.files.names import CURRENT, MANIFEST_FILE, REVISIONS
from handler.errors import ModelUnavailable
from handler.store.free_space import check_free_space
from handler.store.part import Part, parts_of
from handler.store.transfer import RemoteFile

INCOMING = "incoming"
RELEASED = "released"
STALE_AFTER_S = 3600  # no function runs for more than 15 minutes


class Staging:
    """The directory of one writer for one model: fill it, `publish` it, `close` it.

    Raises:
        OSError: `root` is not writable.
    """

    def __init__(self, root: str) -> None:
        self.root: Final = root
        self._incoming = os.path.join(root, INCOMING)
        name = ".".join([*_process(os.getpid()), secrets.token_hex(4)])
        self._directory = os.path.join(self._incoming, name)
        self._parts = os.path.join(self._directory, "parts")
        self.model_dir: Final = os.path.join(self._directory, "model")
        """The complete files; becomes the revision."""
        self._open: list[Part] = []
        self._assembled: list[tuple[str, str]] = []
        for folder in (os.path.join(root, REVISIONS), self._parts, self.model_dir):
            # A writer that finishes may remove an empty directory at the same time.
            for _ in range(3):
                with suppress(FileNotFoundError):
                    os.makedirs(folder, exist_ok=True)
                    break
        self._take_over()

    def _take_over(self) -> None:
        """Take over the partial files of abandoned writers; remove old directories.

        Whether a process in another execution environment is alive cannot be checked, so its
        directory is removed by age. Ages are relative to the modification time of our own
        directory, so that only the clock of the file system matters.
        """
        now = os.stat(self._directory).st_mtime
        for name in _names(self._incoming):
            path = os.path.join(self._incoming, name)
            if path == self._directory:
                continue
            if abandoned := _is_abandoned(name):
                for part in _names(os.path.join(path, "parts")):
                    with suppress(OSError):  # another writer took it
                        os.rename(os.path.join(path, "parts", part), f"{self._parts}/{part}")
            if abandoned or now - _last_change(path) > STALE_AFTER_S:
                shutil.rmtree(path, ignore_errors=True)

    def part(self, file: RemoteFile) -> Part:
        """The partial file of a remote file."""
        part = Part(self._parts, file)
        self._open.append(part)
        return part

    def keep_only(self, files: list[RemoteFile]) -> int:
        """Remove the parts of other files; returns the bytes already downloaded of these."""
        wanted = {path for file in files for path in parts_of(self._parts, file)}
        for name in os.listdir(self._parts):
            if (path := os.path.join(self._parts, name)) not in wanted:
                os.unlink(path)
        return min(sum(file.size for file in files), sum(map(os.path.getsize, wanted)))

    def check_free_space(self, size: int) -> None:
        """Check that `size` more bytes fit.

        Raises:
            InsufficientStorage: they do not fit.
        """
        check_free_space(self.root, size)

    def assemble(self, files: list[RemoteFile]) -> None:
        """Rename the complete, verified files to their names in the model."""
        for file in files:
            (path,) = parts_of(self._parts, file)
            target = os.path.join(self.model_dir, file.name)
            os.rename(path, target)
            self._assembled.append((path, target))

    def publish(
        self, manifest: bytes, model_dir: str | None = None, damaged: str | None = None
    ) -> tuple[str, bool]:
        """Publish the model under the digest of its manifest and make it current.

        `model_dir` is the directory to publish, by default `self.model_dir`. An existing revision
        is kept unless it is incomplete or is `damaged`. If the process dies, `CURRENT` is either
        the old or the new one, and all revisions are complete.

        Returns:
            The path of the revision, and whether this writer published it.
        """
        model_dir = model_dir or self.model_dir
        _remove(os.path.join(model_dir, MANIFEST_FILE))
        _write(os.path.join(model_dir, MANIFEST_FILE), manifest)
        _flush(model_dir)
        digest = sha256(manifest).hexdigest()
        revision = os.path.join(self.root, REVISIONS, digest)
        ours = False
        for _ in range(5):
            try:
                os.rename(model_dir, revision)
                ours = True
                break
            except OSError:
                if not os.path.lexists(revision):
                    raise
            if revision != damaged and matches_manifest(revision, manifest):
                break  # another writer has published the same files
            with suppress(FileNotFoundError):
                os.rename(revision, os.path.join(self._directory, f"broken-{secrets.token_hex(4)}"))
        else:
            raise ModelUnavailable(
                f"{revision}: another writer keeps replacing this revision by an invalid one:"
                " stop that writer, then download again"
            )
        _flush(os.path.dirname(revision))
        current = os.path.join(self._directory, CURRENT)
        _write(current, f"{digest}\n".encode())
        os.replace(current, os.path.join(self.root, CURRENT))
        _flush(self.root)
        self.reject()
        return revision, ours

    def reject(self) -> None:
        """Remove the partial files, so that the next attempt does not use them."""
        self._assembled.clear()
        shutil.rmtree(self._parts, ignore_errors=True)

    def close(self) -> None:
        """Keep the partial files for the next attempt and remove the rest. Does not raise."""
        for part in self._open:  # threads may still use them
            part.close()
        for path, target in self._assembled:
            with suppress(OSError):
                os.rename(target, path)
        for name in _names(self._directory):
            if name != "parts" or not _names(self._parts):
                shutil.rmtree(os.path.join(self._directory, name), ignore_errors=True)
        with suppress(OSError):
            os.rmdir(self._directory)
        with suppress(OSError):
            os.rename(self._directory, f"{self._incoming}/{RELEASED}.{secrets.token_hex(8)}")
        with suppress(OSError):  # other writers have directories there
            os.rmdir(self._incoming)


def matches_manifest(model_dir: str, manifest: bytes) -> bool:
    """Whether a directory has exactly this manifest and files of the sizes in it."""
    try:
        found = read_manifest(model_dir)
        if found is None or found.raw != manifest:
            return False
        check_sizes(model_dir, found)
    except ModelError:
        return False
    return True


def is_damaged(model_dir: str) -> bool:
    """Whether any file differs from the manifest. Reads all files."""
    try:
        manifest = read_manifest(model_dir)
        if manifest is None:
            return False
        check_sizes(model_dir, manifest)
        for name, entry in manifest.files.items():
            with open(os.path.join(model_dir, name), "rb") as file:
                if file_digest(file, "sha256").hexdigest() != entry.sha256:
                    return True
    except ModelError:
        return True
    except OSError:  # cannot be decided
        return False
    return False


def _process(pid: int) -> list[str]:
    """Identifies a process: boot id of the machine, PID namespace, PID and start time.

    Containers on one machine share its boot id but have their own PID namespaces. The start time is
    in clock ticks after boot (proc(5), field 22 of stat).
    """
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip().replace("-", "")[:12]
        with open(f"/proc/{pid}/stat", "rb") as stat:
            started = stat.read().rpartition(b")")[2].split()[19].decode()
        return [boot, str(os.stat("/proc/self/ns/pid").st_ino), str(pid), started]
    except (OSError, IndexError):  # no such process, not Linux, or a sandbox without /proc
        return ["unknown", "0", str(pid), "0"]


def _is_abandoned(writer: str) -> bool:
    """Whether a writer has released its directory, or was a process of this machine and died."""
    own, other = _process(os.getpid()), writer.split(".")[:4]
    if other[0] == RELEASED:
        return True
    if own[0] == "unknown" or own[:2] != other[:2] or not other[2].isdigit():
        return False
    try:
        os.kill(int(other[2]), 0)  # signal 0 only checks that the process exists
    except ProcessLookupError:
        return True
    except OSError:  # a process of another user
        return False
    now = _process(int(other[2]))
    return now[0] != "unknown" and now != other


def _last_change(path: str) -> float:
    """The latest modification time of a path and everything below it."""
    latest = 0.0
    for folder, folders, files in os.walk(path):
        for found in (folder, *(os.path.join(folder, name) for name in (*folders, *files))):
            with suppress(FileNotFoundError):
                latest = max(latest, os.lstat(found).st_mtime)
    return latest


def _write(path: str, content: bytes) -> None:
    with open(path, "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _flush(folder: str) -> None:
    """Flush a directory's entries to disk."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _remove(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)


def _names(folder: str) -> list[str]:
    with suppress(FileNotFoundError):
        return os.listdir(folder)
    return []
