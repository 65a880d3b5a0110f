"""A model from its URI to a published, verified directory; what S3 and the Hub have in common.

    find the files -> look for room -> fetch and hash each -> open the whole as a model -> publish

It runs on a thread of its own, so that a server that stalls cannot hold the caller, whose invoke
has a deadline. Whatever happens, nothing is opened that was not verified, and nothing stays behind
but files that were verified, for the next attempt.
"""

import errno
import os
import threading
from collections.abc import Callable
from typing import NamedTuple, Protocol

from gpt2core.errors import GPT2Error, ModelError
from gpt2core.layout import (
    CONFIG_FILE,
    INDEX_FILE,
    MANIFEST_FILE,
    PACKED_FORMAT,
    SINGLE_FILE,
    TOKENIZER_FILE,
    VOCABULARY_FILES,
)
from gpt2core.manifest import (
    MAX_BYTES,
    FileDigest,
    Manifest,
    manifest_bytes,
    parse_manifest,
    read_manifest,
)
from handler.errors import (
    DigestMismatch,
    DownloadFailed,
    ModelNotFound,
    ModelUnavailable,
    NoRoom,
    NotWritable,
)
from handler.parallel import map_in_order
from handler.progress import MakeDisplay, Stopped, Watch, display, megabytes
from handler.remote import Remote, RemoteFile, persist, shards_of
from handler.revisions import resolve

FILES_AT_ONCE = 4
_NAMES = (MANIFEST_FILE, CONFIG_FILE, SINGLE_FILE, INDEX_FILE, TOKENIZER_FILE, *VOCABULARY_FILES)
_NOT_READ = (
    "pytorch_model.bin",
    "tf_model.h5",
    "flax_model.msgpack",
    "pytorch_model.bin.index.json",
)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


class Published(NamedTuple):
    """A model that can be opened."""

    path: str
    digest: str
    """SHA-256 of its manifest."""
    size: int
    """Bytes of all its files."""
    fetched: bool
    """False if this very model was current already."""


class Place(Protocol):
    """Where a model goes: `staging.Staging` on a disk, `memory.MemoryStaging` in memory."""

    @property
    def model_dir(self) -> str:
        """Where the verified files have their names."""

    def adopt(self, file: RemoteFile) -> str | None:
        """Take a file that an earlier download verified; its SHA-256."""

    def require(self, size: int) -> None:
        """Raise `NoRoom` unless `size` more bytes fit."""

    def path_for(self, file: RemoteFile) -> str:
        """Where to write a file."""

    def keep(self, file: RemoteFile, path: str, digest: str) -> None:
        """Make a verified file part of the model."""

    def reject(self) -> None:
        """Remove what the model was made of."""

    def publish(self, manifest: bytes, model_dir: str | None = None) -> str:
        """Make the model available; its path."""

    def close(self) -> None:
        """Clean up."""


def to_directory(
    uri: str,
    root: str,
    *,
    pin: str | None = None,
    deadline: float | None = None,
    show: MakeDisplay = display,
    pack: str | None = None,
) -> Published:
    """Download a model and make it the current one of `root`, a volume or a cache.

    `pin` is the SHA-256 that the manifest or the weights must have; `deadline` is in
    `time.monotonic()` seconds. With `pack`, a precision, it is the packed form that is published.

    Raises:
        ModelUnavailable: one of its subclasses says why; `root` is as it was.
    """
    from handler.staging import Staging

    def place() -> Place:
        return Staging(root)

    return _Download(uri, place, pin, deadline, current=root, pack=pack).run(show)


def to_memory(
    uri: str,
    *,
    pin: str | None = None,
    deadline: float | None = None,
    show: MakeDisplay = display,
) -> Published:
    """Download a model from S3 into the memory of this process.

    Raises:
        ModelUnavailable: one of its subclasses says why.
    """
    from handler.memory import MemoryStaging

    return _Download(uri, MemoryStaging, pin, deadline).run(show)


class _Download:
    def __init__(
        self,
        uri: str,
        make_place: Callable[[], Place],
        pin: str | None,
        deadline: float | None,
        current: str | None = None,
        pack: str | None = None,
    ) -> None:
        self._uri = uri
        self._make_place = make_place
        self._pin = pin
        self._current = current
        self._pack = pack
        self._watch = Watch(deadline)
        self._remote = _remote(uri)
        self._place: Place | None = None
        self._result: Published | BaseException | None = None
        self._done = threading.Event()

    def run(self, show: MakeDisplay) -> Published:
        """Wait for the work, showing how far it is, but not beyond the deadline."""
        watch, shown = self._watch, show(self._uri)
        worker = threading.Thread(target=self._work, daemon=True)
        worker.start()
        try:
            while not self._done.wait(_sooner(shown.interval, watch.remaining())):
                shown.show(watch)
                if watch.remaining() == 0:
                    break
        finally:
            watch.stop()
            worker.join(0.1)
            if worker.is_alive() and self._place and not watch.committed:
                self._place.close()  # a server holds the worker, and we may be about to exit
            shown.close(watch, finished=isinstance(self._result, Published))
        if self._result is None:
            raise self._too_late()
        if isinstance(self._result, BaseException):
            raise self._result
        return self._result

    def _work(self) -> None:
        try:
            self._result = self._download()
        except Stopped:
            pass
        except ModelUnavailable as error:
            self._result = error
        except OSError as error:
            self._result = self._disk_error(error)
        except BaseException as error:  # noqa: BLE001 (raised by `run`, in the thread that asked)
            self._result = error
        finally:
            self._done.set()

    def _download(self) -> Published:
        threading.Thread(target=_import_engine, daemon=True).start()
        place = self._place = self._make_place()
        try:
            files, manifest = self._plan(place)
            source = self._remote.source(files)
            if self._pack:
                source = f"{source}#{PACKED_FORMAT}#{self._pack}"
            published = self._published(manifest, source)
            if published:
                return published
            digests = self._fetch_all(files, place)
            sizes = {f.name: FileDigest(f.size, digests[f.name]) for f in files}
            raw = manifest.raw if manifest else manifest_bytes(sizes, source)
            made = parse_manifest(raw)
            try:
                self._check_pin(made)
                self._open(place.model_dir)
            except ModelUnavailable:
                place.reject()
                raise
            packed = self._packed(place.model_dir, source) if self._pack else None
            if packed:
                made = _manifest_of(packed)
            self._watch.commit()
            path = place.publish(made.raw, packed)
            return Published(path, made.digest, made.size, fetched=True)
        finally:
            place.close()

    def _plan(self, place: Place) -> tuple[list[RemoteFile], Manifest | None]:
        """The files to fetch: what the source's manifest lists, or what a raw directory needs."""
        found = self._find(_NAMES)
        if MANIFEST_FILE in found:
            manifest = self._read_manifest(found[MANIFEST_FILE], place)
            if self._pin and not manifest.is_pinned_by(self._pin):
                self._check_pin(manifest)
            return self._listed(manifest), manifest
        if CONFIG_FILE not in found:
            raise ModelNotFound(f"{self._uri} holds no {CONFIG_FILE}: is it a model directory?")
        names = [CONFIG_FILE, *((TOKENIZER_FILE,) if TOKENIZER_FILE in found else VOCABULARY_FILES)]
        if SINGLE_FILE in found:
            names.append(SINGLE_FILE)
            promised = found[SINGLE_FILE].digests.get("sha256")
            if self._pin and promised and promised != self._pin:
                raise self._not_pinned(f"{SINGLE_FILE} has the SHA-256 {promised}")
        elif INDEX_FILE in found:
            index = found[INDEX_FILE]
            shards = shards_of(self._read(index, place))
            found |= self._find(shards)
            for shard in shards:
                if shard not in found:
                    raise ModelNotFound(
                        f"{self._uri}: {INDEX_FILE} names {shard}, which is not there"
                    )
            names += [INDEX_FILE, *shards]
        else:
            others = ", ".join(self._find(_NOT_READ))
            hint = f"; {others} cannot be read: convert it to safetensors" if others else ""
            raise ModelNotFound(f"{self._uri} holds no {SINGLE_FILE} and no {INDEX_FILE}{hint}")
        return [found[name] for name in names if name in found], None

    def _listed(self, manifest: Manifest) -> list[RemoteFile]:
        """The files of a manifest, as they are at the source."""
        found = self._find(manifest.files)
        files = []
        for name, entry in manifest.files.items():
            if name not in found:
                raise ModelNotFound(
                    f"{self._uri}: {MANIFEST_FILE} lists {name}, which is not there"
                )
            if found[name].size != entry.size:
                raise DigestMismatch(
                    f"{self._uri}: {name} has {found[name].size} bytes, {MANIFEST_FILE} says"
                    f" {entry.size}: upload the whole directory again"
                )
            files.append(found[name]._replace(digests={"sha256": entry.sha256}))
        return files

    def _published(self, manifest: Manifest | None, source: str) -> Published | None:
        """What is current, if it is the very model that the source has now."""
        try:
            path = self._current and resolve(self._current)
            now = read_manifest(path) if path else None
        except GPT2Error:
            return None  # it is broken, and will be replaced
        if not path or not now or path == self._current:
            return None
        as_it_is = manifest is not None and not self._pack
        same = now.raw == manifest.raw if manifest and as_it_is else now.source == source
        from handler.staging import holds

        if not same or not holds(path, now.raw):
            return None
        if not self._pack:  # a pin is for what is packed, and that is what the source's name says
            self._check_pin(now)
        return Published(path, now.digest, now.size, fetched=False)

    def _fetch_all(self, files: list[RemoteFile], place: Place) -> dict[str, str]:
        """Every file into the model; SHA-256 by name."""
        digests = {file.name: place.adopt(file) for file in files}
        missing = [file for file in files if digests[file.name] is None]
        self._watch.total = sum(file.size for file in missing)
        self._watch.arrived = 0
        place.require(self._watch.total + (sum(f.size for f in files) if self._pack else 0))
        # The largest first: the others arrive meanwhile.
        missing.sort(key=lambda file: -file.size)
        fetched = map_in_order(lambda file: self._fetch(file, place), missing, FILES_AT_ONCE)
        for file, digest in zip(missing, fetched, strict=True):
            digests[file.name] = digest
        return {name: digest for name, digest in digests.items() if digest}

    def _fetch(self, file: RemoteFile, place: Place) -> str:
        """One file, verified and kept."""
        path, digest = self._fetch_twice(file, place)
        self._watch.check()
        place.keep(file, path, digest)
        return digest

    def _fetch_twice(self, file: RemoteFile, place: Place) -> tuple[str, str]:
        """Path and digest of one file, fetched once more if its bytes are wrong."""
        for last in (False, True):
            path = place.path_for(file)
            try:
                return path, self._fetch_to(path, file)
            except DigestMismatch as error:
                self._watch.failed(error.message)
                if last:
                    raise DigestMismatch(
                        f"{self._uri}: {error.message}, in two downloads: both were removed"
                    ) from None
                self._watch.advance(-file.size)
        raise AssertionError("the second attempt returns or raises")

    def _fetch_to(self, path: str, file: RemoteFile) -> str:
        return persist(lambda: self._remote.fetch(file, path, self._watch), self._watch)

    def _find(
        self, names: "tuple[str, ...] | list[str] | dict[str, FileDigest]"
    ) -> dict[str, RemoteFile]:
        return persist(lambda: self._remote.find(names), self._watch)

    def _read_manifest(self, file: RemoteFile, place: Place) -> Manifest:
        try:
            return parse_manifest(self._read(file, place, keep=False), MANIFEST_FILE)
        except ModelError as error:
            raise ModelNotFound(f"{self._uri}: {error.message}") from None

    def _read(self, file: RemoteFile, place: Place, keep: bool = True) -> bytes:
        """A small file's bytes."""
        if file.size > 16 * MAX_BYTES:
            raise ModelNotFound(f"{self._uri}: {file.name} has {file.size} bytes, too many")
        path, digest = self._fetch_twice(file, place)
        with open(path, "rb") as opened:
            content = opened.read()
        if keep:
            place.keep(file, path, digest)
        return content

    def _check_pin(self, manifest: Manifest) -> None:
        if self._pin and not manifest.is_pinned_by(self._pin):
            raise self._not_pinned(f"the manifest has the SHA-256 {manifest.digest}")

    def _not_pinned(self, found: str) -> DigestMismatch:
        return DigestMismatch(
            f"{self._uri}: {found}, and {self._pin} is pinned", param="GPT2_MODEL_SHA256"
        )

    def _packed(self, model_dir: str, source: str) -> str:
        """The packed form beside a verified model directory."""
        from gpt2core.pack import pack

        target = f"{model_dir}.packed"
        try:
            pack(model_dir, target, str(self._pack), source=source)
        except ModelError as error:
            raise ModelUnavailable(f"{self._uri} cannot be packed: {error.problem}") from None
        self._open(target)
        return target

    def _open(self, model_dir: str) -> None:
        """Hold the files against each other, as the engine does: headers, shapes, tokenizer."""
        from gpt2core.engine import Engine  # NumPy; needed anyway as soon as the model is used

        try:
            engine = Engine.open(model_dir)
            if os.path.exists(os.path.join(model_dir, TOKENIZER_FILE)) or os.path.exists(
                os.path.join(model_dir, VOCABULARY_FILES[0])
            ):
                engine.tokenizer  # noqa: B018 (opens it)
        except ModelError as error:
            file = f"{os.path.basename(error.file)}: " if error.file else ""
            raise ModelUnavailable(
                f"{self._uri} is no model that can be used: {file}{error.problem}"
            ) from None

    def _too_late(self) -> DownloadFailed:
        watch = self._watch
        total = f" of {megabytes(watch.total)}" if watch.total else ""
        troubles = (
            f", {watch.failures} failures, the last: {watch.last_failure}" if watch.failures else ""
        )
        return DownloadFailed(
            f"{self._uri}: {megabytes(watch.arrived)}{total} arrived in {watch.seconds:.1f} s, then"
            f" the function's time was up{troubles}: give it a longer Timeout, or use a volume"
        )

    def _disk_error(self, error: OSError) -> ModelUnavailable:
        where = self._current or "memory"
        if error.errno in _FULL:
            needed = f" of {megabytes(self._watch.total)}" if self._watch.total else ""
            return NoRoom(
                f"{where} is full after {megabytes(self._watch.arrived)}{needed}: set a larger"
                " EphemeralStorage for the function, or use a volume (GPT2_MODEL_DIR)",
                param="GPT2_CACHE_DIR",
            )
        if error.errno in _READ_ONLY:
            return NotWritable(f"{where} cannot be written ({error.strerror}): mount it writable")
        return NotWritable(f"{where}: {error.strerror or type(error).__name__}")


def _manifest_of(model_dir: str) -> Manifest:
    manifest = read_manifest(model_dir)
    assert manifest  # it has just been written
    return manifest


def _import_engine() -> None:
    """What opens the model takes 100 ms to import: meanwhile the bytes arrive."""
    from importlib import import_module

    for name in ("gpt2core.engine", "tokenizers"):
        import_module(name)


def _remote(uri: str) -> Remote:
    if uri.startswith("s3://"):
        from handler.s3 import S3

        return S3(uri)
    from handler.hub import Hub

    return Hub(uri)


def _sooner(interval: float, remaining: float | None) -> float:
    return interval if remaining is None else min(interval, remaining)
