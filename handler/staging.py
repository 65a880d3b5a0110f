"""Writing a published model: everything arrives below `incoming/` and is then renamed into place.

    ROOT/revisions/<digest>/      whole models, never changed
    ROOT/CURRENT                  the name of one of them
    ROOT/incoming/<writer>/       what one writer has under way
    ROOT/incoming/verified/       files that arrived whole, for whoever needs them next

Nothing is locked: on network file systems a lock may be granted to everyone. Two writers may do
the same work twice; each has a directory of its own, and `rename` decides who was first.
"""

import contextlib
import os
import secrets
import shutil
import stat
from hashlib import file_digest, sha256
from typing import Final

from gpt2core.errors import ModelError
from gpt2core.layout import MANIFEST_FILE
from gpt2core.manifest import check_sizes, read_manifest
from handler.errors import NoRoom
from handler.progress import megabytes
from handler.remote import RemoteFile
from handler.revisions import CURRENT, REVISIONS

INCOMING = "incoming"
VERIFIED = "verified"
LEFT_OVER_AFTER_S = 3600  # no function runs for more than 15 minutes
ROOM_TO_SPARE = 1 << 20  # for directories and the manifest


class Staging:
    """One writer's place in `root`, for one model. Make it, fill it, `publish` it, `close` it.

    Raises:
        OSError: `root` cannot be written.
    """

    def __init__(self, root: str) -> None:
        self.root: Final = root
        self._incoming = os.path.join(root, INCOMING)
        self._verified = os.path.join(self._incoming, VERIFIED)
        self._used: list[str] = []
        self._unlinked: list[tuple[str, str]] = []
        self._wanted: list[str] = []
        self._own = os.path.join(self._incoming, f"{_process()}.{secrets.token_hex(4)}")
        self.model_dir: Final = os.path.join(self._own, "model")
        """Where the files have their names; becomes the revision."""
        for folder in (os.path.join(root, REVISIONS), self._verified, self._own, self.model_dir):
            # A writer that finishes takes away what is empty, maybe just now.
            for _ in range(3):
                try:
                    os.makedirs(folder, exist_ok=True)
                    break
                except FileNotFoundError:
                    continue
        self._sweep()

    def adopt(self, file: RemoteFile) -> str | None:
        """Give the model a file that an earlier download verified; its SHA-256 if there is one."""
        prefix = f"{_key(file)}."
        self._wanted.append(prefix)
        for name in _names(self._verified):
            source = os.path.join(self._verified, name)
            target = os.path.join(self.model_dir, file.name)
            digest = name[len(prefix) :]
            if not name.startswith(prefix) or not _is_file_of(source, file.size):
                continue
            if file.digests.get("sha256", digest) != digest:
                continue  # whole, and not what is promised now
            try:
                _link_or_move(source, target)
            except FileNotFoundError:  # moved away by another writer, who has no hard links either
                continue
            self._used.append(source)
            return digest
        return None

    def require(self, size: int) -> None:
        """Look whether `size` more bytes fit.

        Raises:
            NoRoom: they do not.
        """
        room = os.statvfs(self.root)
        if room.f_bavail * room.f_frsize < size + ROOM_TO_SPARE:
            self._forget_other_versions()
            room = os.statvfs(self.root)
        free = room.f_bavail * room.f_frsize
        if free >= size + ROOM_TO_SPARE:
            return
        raise NoRoom(
            f"{self.root} has {megabytes(free)} free and the model needs {megabytes(size)}:"
            f" {self._more_room(room, size)}",
            param="GPT2_CACHE_DIR",
        )

    def _more_room(self, room: os.statvfs_result, size: int) -> str:
        if not f"{self.root}/".startswith("/tmp/"):  # noqa: S108 (what Lambda calls ephemeral)
            return "free some there, or use a larger file system"
        # What `/tmp` would have to be: all that is there now and what is missing, in MiB.
        used = (room.f_blocks - room.f_bavail) * room.f_frsize
        least = -(-(used + size + ROOM_TO_SPARE) // (64 << 20)) * 64
        return (
            f"set the function's EphemeralStorage to {max(512, least)} or more, keep a model from"
            " S3 in memory with GPT2_CACHE_DIR=memory, or use a volume (GPT2_MODEL_DIR)"
        )

    def path_for(self, file: RemoteFile) -> str:
        """Where to write a file; nothing is there."""
        path = os.path.join(self._own, f"{_key(file)}.part")
        _remove(path)
        return path

    def keep(self, file: RemoteFile, path: str, digest: str) -> None:
        """Make a verified file at `path_for(file)` part of the model, and of what outlives us."""
        _flush(path)
        verified = os.path.join(self._verified, f"{_key(file)}.{digest}")
        target = os.path.join(self.model_dir, file.name)
        os.rename(path, target)
        self._used.append(verified)
        try:
            # A writer that finished may have found the folder empty and removed it.
            os.makedirs(self._verified, exist_ok=True)
            os.link(target, verified)
        except FileExistsError:
            return
        except OSError:  # no hard links here: `close` moves it back if nothing comes of the model
            self._unlinked.append((target, verified))

    def reject(self) -> None:
        """Remove the files that this model was made of: all were verified, and it is none."""
        for path in self._used:
            _remove(path)
        self._unlinked.clear()

    def publish(self, manifest: bytes, model_dir: str | None = None) -> str:
        """Make the model current under its manifest's digest; the path of the revision.

        `model_dir` is another directory on the same file system that stands for it: its packed
        form.
        A process that dies anywhere in here leaves either the old `CURRENT` or the new one, and
        every revision whole.
        """
        model_dir = model_dir or self.model_dir
        _replace(os.path.join(model_dir, MANIFEST_FILE), manifest)
        _flush(model_dir)
        digest = sha256(manifest).hexdigest()
        revision = os.path.join(self.root, REVISIONS, digest)
        for _ in range(5):
            try:
                os.rename(model_dir, revision)
                break
            except OSError:
                if not os.path.lexists(revision):
                    raise
            if holds(revision, manifest):  # another writer was first, with the same bytes
                break
            aside = os.path.join(self._own, f"broken-{secrets.token_hex(4)}")
            try:
                os.rename(revision, aside)
            except FileNotFoundError:
                continue
        else:
            raise FileExistsError(
                17, "another writer keeps putting a broken revision there", revision
            )
        _flush(os.path.dirname(revision))
        current = os.path.join(self._own, CURRENT)
        _write(current, f"{digest}\n".encode())
        os.replace(current, os.path.join(self.root, CURRENT))
        _flush(self.root)
        self._unlinked.clear()
        for path in self._used:
            _remove(path)
        return revision

    def close(self) -> None:
        """Take away what is this writer's own. Does not raise."""
        for target, verified in self._unlinked:
            with contextlib.suppress(OSError):
                os.rename(target, verified)
        shutil.rmtree(self._own, ignore_errors=True)
        for folder in (self._verified, self._incoming):
            try:
                os.rmdir(folder)
            except OSError:  # others still have something there
                continue

    def _forget_other_versions(self) -> None:
        """Remove verified files that are no part of this model as it is now."""
        for name in _names(self._verified):
            if not name.startswith(tuple(self._wanted)):
                _remove(os.path.join(self._verified, name))

    def _sweep(self) -> None:
        """Remove what dead writers left: those of this machine at once, others by age.

        A process of another sandbox cannot be asked whether it lives. The file system's clock
        decides, not ours: ages count from the time that it gave to our own directory.
        """
        now = os.stat(self._own).st_mtime
        for name in _names(self._incoming):
            path = os.path.join(self._incoming, name)
            if path == self._own or name == VERIFIED:
                continue
            if _is_dead(name) or now - _last_change(path) > LEFT_OVER_AFTER_S:
                shutil.rmtree(path, ignore_errors=True)
        for name in _names(self._verified):
            path = os.path.join(self._verified, name)
            if now - _last_change(path) > LEFT_OVER_AFTER_S:
                _remove(path)


def holds(model_dir: str, manifest: bytes) -> bool:
    """Whether a directory has exactly this manifest and files of its sizes."""
    try:
        found = read_manifest(model_dir)
        if found is None or found.raw != manifest:
            return False
        check_sizes(model_dir, found)
    except ModelError:
        return False
    return True


def is_damaged(model_dir: str) -> bool:
    """Whether any byte is not what the manifest says. Reads all of them."""
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
    except OSError:  # not the file's fault
        return False
    return False


def discard(root: str, revision: str) -> None:
    """Take a damaged revision out of a cache, so that it is fetched again.

    Does not raise: what cannot be removed is not used either.
    """
    try:
        staging = Staging(root)
    except OSError:
        return
    try:
        os.rename(revision, os.path.join(staging.model_dir, "broken"))
        os.unlink(os.path.join(root, CURRENT))
    except OSError:
        return
    finally:
        staging.close()


def _key(file: RemoteFile) -> str:
    """The name of a file's content, as far as its source tells it before it is fetched."""
    return sha256(f"{file.name}\0{file.size}\0{file.version}".encode()).hexdigest()[:32]


def _process() -> str:
    """Who we are among all that may write here: machine, PID namespace, PID and start time.

    Containers of one machine share its boot id and count their processes apart.
    """
    pid = os.getpid()
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip().replace("-", "")[:12]
        namespace = os.stat("/proc/self/ns/pid").st_ino
        return f"{boot}.{namespace}.{pid}.{_started(pid)}"
    except (OSError, IndexError):  # not Linux, or a sandbox without /proc
        return f"unknown.0.{pid}.0"


def _started(pid: int) -> str:
    """Start time of a process in clock ticks after boot (proc(5), field 22 of stat)."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()[19].decode()


def _is_dead(writer: str) -> bool:
    """Whether a writer's directory name tells a process of this machine that is no more."""
    own, other = _process().split("."), writer.split(".")
    if len(other) != 5 or own[0] == "unknown" or own[:2] != other[:2] or not other[2].isdigit():
        return False
    try:
        os.kill(int(other[2]), 0)  # asks, and sends nothing
        return _started(int(other[2])) != other[3]
    except ProcessLookupError:
        return True
    except (OSError, IndexError):  # somebody else's
        return False


def _last_change(path: str) -> float:
    """The latest modification of a path or of anything below it."""
    latest = 0.0
    paths = [path]
    for folder, folders, files in os.walk(path):
        paths += [os.path.join(folder, name) for name in (*folders, *files)]
    for found in paths:
        try:
            latest = max(latest, os.lstat(found).st_mtime)
        except FileNotFoundError:
            continue
    return latest


def _is_file_of(path: str, size: int) -> bool:
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size == size


def _link_or_move(source: str, target: str) -> None:
    """A second name for a file, or a new one where the file system has no hard links."""
    try:
        os.link(source, target)
    except FileExistsError:
        return
    except FileNotFoundError:
        raise
    except OSError:
        os.rename(source, target)


def _replace(path: str, content: bytes) -> None:
    """Write a small file that nobody reads yet, and that may be there already."""
    _remove(path)
    _write(path, content)


def _write(path: str, content: bytes) -> None:
    with open(path, "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _flush(path: str) -> None:
    """Bring a file, or a directory's entries, to the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []
