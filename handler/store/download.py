"""Downloads a model to a verified, published directory; common to S3 and the Hugging Face Hub.

    find the files -> check free space -> fetch and hash each file -> open the model -> publish

Runs in its own thread, so that a stalled server cannot block the caller beyond its deadline. Only
verified files are opened. Completed parts are kept for the next attempt.
"""

import errno
import os
import threading
from collections.abc import Callable, Iterable
from contextlib import closing
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

from gpt2core.errors import GPT2Error, ModelError
from gpt2core.files.manifest import (
    MAX_BYTES,
    FileDigest,
    Manifest,
    manifest_bytes,
    parse_manifest,
    read_manifest,
)
from gpt2core.files.names import PACKED_FORMAT, tokenizer_files
from handler import errors
from handler.errors import DigestMismatch, ModelUnavailable
from handler.store.contents import check_pin, files_of
from handler.store.publish import Staging, matches_manifest
from handler.store.revisions import resolve
from handler.store.transfer import (
    CHECK_NETWORK,
    Display,
    DownloadState,
    ETagMismatch,
    Remote,
    RemoteFile,
    Stopped,
    map_in_order,
    megabytes,
    retry,
)

FILES_AT_ONCE = 4
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)

Opened = TypeVar("Opened")


class Published(NamedTuple, Generic[Opened]):
    """A published model."""

    path: str
    digest: str
    """SHA-256 of its manifest."""
    size: int
    """Total size of its files in bytes."""
    fetched: bool
    """False if this model was already current."""
    opened: Opened
    """The result of `opener`."""


def validate_model(model_dir: str) -> None:
    """Open a model as the engine does: headers, shapes, tokenizer.

    Raises:
        ModelError: the directory is not a valid model.
    """
    from gpt2core.engine import Engine

    engine = Engine.open(model_dir)
    if tokenizer_files(os.listdir(model_dir)):
        engine.tokenizer  # noqa: B018 (opens it)


def to_directory(
    uri: str,
    root: str,
    opener: Callable[[str], Any] = validate_model,
    *,
    pin: str | None = None,
    deadline: float | None = None,
    show: Callable[[str], Any] = Display,
    pack: str | None = None,
    damaged: str | None = None,
) -> Published[Any]:
    """Download a model and make it the current model of `root`, a volume or a cache.

    Args:
        uri: `s3://…` or `hf://…`.
        root: the directory to publish to.
        opener: opens the verified directory; raises `ModelError` if it is not a valid model.
        pin: required SHA-256 of the manifest or of the weights file.
        deadline: `time.monotonic()` seconds.
        show: displays the progress.
        pack: a precision: publish the packed form instead of the raw files.
        damaged: an existing revision to replace.

    Raises:
        ModelUnavailable: a subclass tells the cause. `root` is unchanged.
    """
    return _Download(uri, root, opener, pin, deadline, pack, damaged).run(show)


class _Download(Generic[Opened]):
    def __init__(
        self,
        uri: str,
        root: str,
        opener: Callable[[str], Opened],
        pin: str | None,
        deadline: float | None,
        pack: str | None,
        damaged: str | None,
    ) -> None:
        self._uri, self._root, self._opener = uri, root, opener
        self._pin, self._pack, self._damaged = pin, pack, damaged
        self._state = DownloadState(deadline)
        self._remote = _remote(uri)
        self._result: Published[Opened] | BaseException | None = None
        self._done = threading.Event()
        self._etags_are_no_md5 = False

    def run(self, show: Callable[[str], Any]) -> Published[Opened]:
        """Wait for the download until the deadline and display its progress."""
        state, shown = self._state, show(self._uri)
        worker = threading.Thread(target=self._work, daemon=True)
        worker.start()
        try:
            while not self._done.wait(min(shown.interval, state.remaining())):
                shown.show(state)
                if not state.remaining():
                    break
        finally:
            state.stop()
            worker.join(0.1)  # let it save the completed parts
            shown.close(state, finished=isinstance(self._result, Published))
        if self._result is None:
            raise self._timeout_error()
        if isinstance(self._result, BaseException):
            raise self._result
        return self._result

    def _work(self) -> None:
        try:
            self._result = self._download()
        except Stopped:
            pass
        except OSError as error:
            self._result = self._disk_error(error)
        except BaseException as error:  # noqa: BLE001 (`run` raises it in the caller's thread)
            self._result = error
        finally:
            self._done.set()

    def _download(self) -> Published[Opened]:
        threading.Thread(target=_import_engine, daemon=True).start()
        staging = Staging(self._root)
        try:
            return self._published(staging)
        except OSError:  # such as a full disk: remove the parts
            staging.reject()
            raise
        finally:
            staging.close()

    def _published(self, staging: Staging) -> Published[Opened]:
        def read(file: RemoteFile) -> bytes:
            if file.size > 16 * MAX_BYTES:
                raise errors.ModelNotFound(
                    f"{self._uri}: {file.name} has {file.size} bytes, more than {16 * MAX_BYTES}"
                )
            self._fetch(file, staging)
            with closing(staging.part(file)) as part, open(part.path, "rb") as opened:
                return opened.read()

        files, manifest = files_of(self._uri, self._find, read, self._pin)
        source = self._remote.source(files)
        if self._pack:
            source = f"{source}#{PACKED_FORMAT}#{self._pack}"
        if unchanged := self._unchanged(manifest, source):
            return unchanged
        digests = self._fetch_all(files, staging)
        staging.assemble(files)
        if not manifest:
            entries = {file.name: FileDigest(file.size, digests[file.name]) for file in files}
            manifest = parse_manifest(manifest_bytes(entries, source))
        try:
            check_pin(self._uri, manifest, self._pin)
            model_dir = self._packed(staging.model_dir, source) if self._pack else staging.model_dir
            opened = self._open(model_dir)
        except ModelUnavailable:
            staging.reject()  # intact files that are not the expected model
            raise
        if self._pack:
            manifest = read_manifest(model_dir)
            assert manifest  # `pack` wrote it
        self._state.check()
        path, is_ours = staging.publish(manifest.raw, model_dir, self._damaged)
        if not is_ours:  # another writer has published it, and ours is removed
            opened = self._open(path)
        return Published(path, manifest.digest, manifest.size, True, opened)

    def _unchanged(self, manifest: Manifest | None, source: str) -> Published[Opened] | None:
        """The current revision if it equals the model at the source, else None."""
        try:
            path = resolve(self._root)
            now = read_manifest(path) if path else None
        except GPT2Error:
            return None  # invalid: it will be replaced
        if not path or not now or path in (self._root, self._damaged):
            return None
        same = now.raw == manifest.raw if manifest and not self._pack else now.source == source
        if not same or not matches_manifest(path, now.raw):
            return None
        if not self._pack:  # a pin applies to the raw files, which `source` identifies
            check_pin(self._uri, now, self._pin)
        return Published(path, now.digest, now.size, False, self._open(path))

    def _fetch_all(self, files: list[RemoteFile], staging: Staging) -> dict[str, str]:
        """Fetch and verify all files; returns their SHA-256 by name."""
        state, size = self._state, sum(file.size for file in files)
        state.total, state.received = size, staging.keep_only(files)
        staging.check_free_space(size - state.received + (size if self._pack else 0))
        # The largest file first; the others download at the same time.
        files = sorted(files, key=lambda file: -file.size)
        digests = map_in_order(lambda file: self._fetch(file, staging), files, FILES_AT_ONCE, state)
        return {file.name: digest for file, digest in zip(files, digests, strict=True)}

    def _fetch(self, file: RemoteFile, staging: Staging) -> str:
        """Fetch one file, a second time if its digest is wrong; returns its SHA-256."""
        state = self._state
        file = retry(lambda: self._remote.with_digests(file), state)
        with closing(staging.part(file)) as part:
            wrong: DigestMismatch | None = None
            for again in (False, True):
                retry(partial(self._remote.fetch, file, part, state, again), state)
                state.check()
                try:
                    return part.finish(self._etags_are_no_md5)
                except DigestMismatch as error:
                    state.failed(error.message)
                    if is_same_mismatch(error, wrong):
                        self._etags_are_no_md5 = True
                        return part.finish(ignore_etag=True)
                    state.advance(-part.size)
                    part.remove()
                    wrong = error
        raise DigestMismatch(f"{self._uri}: {wrong}, in two downloads; both were removed")

    def _find(self, names: Iterable[str]) -> dict[str, RemoteFile]:
        return retry(lambda: self._remote.find(names, self._state), self._state)

    def _packed(self, model_dir: str, source: str) -> str:
        """Pack a verified model directory; returns the packed directory."""
        from gpt2core.pack import pack

        target = f"{model_dir}.packed"
        try:
            pack(model_dir, target, str(self._pack), self._state.show_packing, source)
        except ModelError as error:
            raise ModelUnavailable(f"{self._uri} cannot be packed: {error.problem}") from None
        return target

    def _open(self, model_dir: str) -> Opened:
        try:
            return self._opener(model_dir)
        except ModelError as error:
            problem = ModelError(error.problem, file=os.path.basename(error.file))
            raise ModelUnavailable(f"{self._uri} is not a valid model: {problem}") from None

    def _timeout_error(self) -> errors.DownloadFailed:
        state, what = self._state, "an incomplete file list"
        if state.total:
            what = f"{megabytes(state.received)} of {megabytes(state.total)} received"
        advice = "increase the function's Timeout, or use a volume"
        if state.failures:
            what += f" and {state.failures} failures (last: {state.last_failure})"
            advice = advice if state.received else CHECK_NETWORK
        return errors.DownloadFailed(
            f"{self._uri}: the deadline passed after {state.seconds:.1f} s with {what}: {advice}"
        )

    def _disk_error(self, error: OSError) -> ModelUnavailable:
        reason = error.strerror or type(error).__name__
        if error.errno in _FULL:
            return errors.InsufficientStorage(
                f"{self._root} is full after {megabytes(self._state.received)} of"
                f" {megabytes(self._state.total)}: free some space, or use a larger file system"
                " (for /tmp on Lambda, increase EphemeralStorage)",
                param="GPT2_CACHE_DIR",
            )
        advice = ": mount it writable" if error.errno in _READ_ONLY else ": check the file system"
        return errors.NotWritable(f"{self._root}: the model cannot be written ({reason}){advice}")


def is_same_mismatch(one: DigestMismatch, other: DigestMismatch | None) -> bool:
    """Whether two downloads gave the same bytes and only the ETag does not match."""
    if not isinstance(one, ETagMismatch) or not isinstance(other, ETagMismatch):
        return False
    return one.sha256 == other.sha256


def _import_engine() -> None:
    """Import what opens the model while the files download."""
    from gpt2core.engine import import_kernels
    from gpt2core.startup import slim_numpy

    slim_numpy.install()
    import_kernels("auto")


def _remote(uri: str) -> Remote:
    if uri.startswith("s3://"):
        from handler.store.s3 import S3

        return S3(uri)
    from handler.store.hub import Hub

    return Hub(uri)
